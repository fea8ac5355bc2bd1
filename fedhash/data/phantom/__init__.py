"""Invented patients of invented hospitals: a data set that anyone can make in a minute.

Chest radiographs, radiology reports and pulse waves that show the same findings. Each site has its
scanner, sensor, reporting habits and case mix, so that the natural partition (attribute ``site``)
is non-IID in looks and in labels. To study another partition, re-assign patients to sites: each
new site then sees exams of several scanners. The phantom is for software, demonstrations and the
comparison of methods; it says nothing about accuracy on real patients.

    >>> from fedhash.data.phantom import PHANTOM_FINDINGS, PhantomSettings, generate_phantom
    >>> studies = generate_phantom(PhantomSettings(sites=5, patients_per_site=300), seed=7)
    >>> export_phantom(studies, Path("phantom"))  # images, signals.npz and manifest.csv
"""

from fedhash.data.phantom.export import export_phantom
from fedhash.data.phantom.findings import PHANTOM_FINDINGS
from fedhash.data.phantom.generator import generate_phantom
from fedhash.data.phantom.settings import PhantomSettings

__all__ = ["PHANTOM_FINDINGS", "PhantomSettings", "export_phantom", "generate_phantom"]
