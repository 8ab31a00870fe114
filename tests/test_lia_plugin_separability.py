"""Linear separability against scikit-learn, SciPy and closed forms; attributes from files and label vectors."""

import numpy as np
import pytest
from scipy import stats

from dnnlib.util import UserError
from lia_plugin import separability


def test_entropies_in_closed_form_and_against_other_libraries():
    from sklearn.metrics import mutual_info_score

    assert separability.entropy(np.array([4, 4])) == 1 and separability.entropy(np.array([7, 0])) == 0
    stream = np.random.default_rng(0)
    labels = stream.integers(3, size=200)
    found = np.where(stream.random(200) < 0.7, labels, stream.integers(3, size=200))
    bits = stats.entropy(np.bincount(labels), base=2)
    assert separability.entropy(np.bincount(labels)) == pytest.approx(bits)
    expected = bits - mutual_info_score(labels, found) / np.log(2)
    assert separability.conditional_entropy(labels, found) == pytest.approx(expected)
    assert separability.conditional_entropy(labels, labels) == 0


def test_a_share_of_wrong_labels_costs_its_binary_entropy():
    labels = np.repeat([0, 1], 50)
    found = labels.copy()
    found[[0, 1, 2, 3, 4, 50, 51, 52, 53, 54]] ^= 1
    assert separability.conditional_entropy(labels, found) == pytest.approx(stats.entropy([0.1, 0.9], base=2))


def test_predictions_are_scikit_learns_own_of_images_it_has_not_seen():
    from sklearn.model_selection import StratifiedKFold
    from sklearn.svm import LinearSVC

    stream = np.random.default_rng(0)
    labels = stream.integers(2, size=80)
    codes = stream.standard_normal([80, 5]) * [1, 10, 100, 1, 1] + labels[:, None]
    expected = np.zeros(80, int)
    for seen, unseen in StratifiedKFold(5, shuffle=True, random_state=0).split(codes, labels):
        mean, std = codes[seen].mean(axis=0), codes[seen].std(axis=0)
        machine = LinearSVC(dual=False, random_state=0).fit((codes[seen] - mean) / std, labels[seen])
        expected[unseen] = machine.predict((codes[unseen] - mean) / std)
    np.testing.assert_array_equal(separability.cross_predict(codes, labels), expected)


def test_codes_of_many_dimensions_are_not_separable_by_luck():
    """In 200 dimensions a plane parts any 100 points; points that it has not seen say what it knows: nothing."""
    stream = np.random.default_rng(0)
    attribute = ('nothing', np.arange(100), np.arange(100) % 2)
    assert separability.separability(stream.standard_normal([100, 200]), [attribute]) > 1.9
    assert separability.chance([attribute, attribute]) == pytest.approx(4)
    assert np.isnan(separability.separability(np.full([100, 2], np.nan), [attribute]))


def test_label_vectors_are_one_class_or_attributes_by_column():
    one_hot = np.eye(3)[np.arange(30) % 3]
    ((name, items, labels),) = separability.from_vectors(one_hot, 'data')
    assert name == 'class' and list(items) == list(range(30)) and list(labels) == [i % 3 for i in range(30)]
    columns = np.stack([np.arange(30) % 2, np.zeros(30), np.arange(30) < 10], axis=1).astype(np.float32)
    found = separability.from_vectors(columns, 'data')
    assert [name for name, *_ in found] == ['label 0', 'label 2'], 'a column that is always the same tells nothing'
    with pytest.raises(UserError, match='data: label 0 has 150 values for 150 images'):
        separability.from_vectors(np.random.default_rng(0).random([150, 1]), 'data')
    with pytest.raises(UserError, match='data: no attribute has two classes of at least 5 images'):
        separability.from_vectors(np.zeros([30, 2]), 'data')


def test_classes_too_rare_to_judge_are_left_out():
    _name, items, labels = separability.make_attribute('a', range(14), ['x', 'y'] * 5 + ['z'] * 4, 'data')
    assert list(items) == list(range(10)) and list(labels) == [0, 1] * 5


NAMES = [f'{folder}/img{i}.png' for folder in ('00000', '00001') for i in range(8)]


def write(tmp_path, text):
    path = tmp_path / 'labels.csv'
    path.write_text(text, encoding='utf-8')
    return str(path)


def test_csv_files_name_images_as_the_data_set_does_or_by_their_last_part(tmp_path):
    whole = 'file,smile\n' + ''.join(f'{name},{i % 2}\n' for i, name in enumerate(NAMES))
    ((name, items, labels),) = separability.from_table(write(tmp_path, whole), NAMES)
    assert name == 'smile' and list(items) == list(range(16)) and list(labels) == [0, 1] * 8
    names = [f'00000/{i}.png' for i in range(12)]
    rows = [f'{i}.png,{"" if i == 3 else i % 2},{i // 5}\n' for i in range(12)]
    partly = 'file,smile,age\n\nother.png,1,2\n' + ''.join(rows)
    smile, age = separability.from_table(write(tmp_path, partly), names)
    assert list(smile[1]) == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    assert list(age[1]) == list(range(10)), 'the third class has two images'


@pytest.mark.parametrize('text, complaint', [
    ('', 'expected a column of file names and one of labels, as "file,label"'),
    ('file\na.png\n', 'expected a column of file names'),
    ('file,label\na.png,1,2\n', 'row 2 has 3 fields, the first 2'),
    ('file,label\nimg0.png,1\n', 'none of its rows names an image of the data set, whose first is 00000/img0.png'),
    ('file,label\n00000/img0.png,1\n00000/img0.png,2\n', 'two rows for 00000/img0.png'),
    ('file,label\n00000/img0.png,1\n00000/img1.png,1\n', 'no attribute has two classes'),
])  # fmt: skip
def test_csv_files_that_cannot_be_used(text, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint) as caught:
        separability.from_table(write(tmp_path, text), NAMES)
    assert 'labels.csv' in str(caught.value) and '\n' not in str(caught.value)


def test_missing_and_binary_csv_files(tmp_path):
    with pytest.raises(UserError, match='--labels=none.csv: cannot be read'):
        separability.from_table('none.csv', NAMES)
    (tmp_path / 'binary.csv').write_bytes(b'\xff\x00\xfe' * 10)
    with pytest.raises(UserError, match='not a text file'):
        separability.from_table(str(tmp_path / 'binary.csv'), NAMES)
