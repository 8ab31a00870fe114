"""Tables of attributes: which row belongs to which image, whatever the table looks like."""

import json
import zipfile

import pytest

from lia_plugin.attribute_labels import read_attributes
from lia_plugin.host import UserError

NAMES = ['00000/img00000000.png', '00000/img00000001.png', '00000/img00000002.png']


def write(tmp_path, text, name='labels.csv'):
    path = tmp_path / name
    path.write_text(text, encoding='utf-8')
    return str(path)


@pytest.mark.parametrize('written', [
    '00000/img00000001.png', '00000\\img00000001.png', '00000/img00000001', 'img00000001.png', 'img00000001.jpg',
    'elsewhere/img00000001.jpeg', 'img00000001',
])
def test_a_name_is_found_with_and_without_folder_and_extension(tmp_path, written):
    path = write(tmp_path, f'file,hair\n{written},red\nunknown.png,grey\n')
    assert read_attributes(path, NAMES).columns == {'hair': (None, 'red', None)}


@pytest.mark.parametrize(('sign', 'name'), [(',', 'a.csv'), ('\t', 'a.tsv'), (';', 'a.txt'), (' ', 'a.txt')])
def test_separators_and_the_place_of_the_file_column(tmp_path, sign, name):
    rows = [['hair', 'image', 'age'], ['red', 'img00000002.png', '3'], ['grey', 'img00000000.png', '4']]
    path = write(tmp_path, '\n'.join(sign.join(row) for row in rows), name)
    assert read_attributes(path, NAMES).columns == {'hair': ('grey', None, 'red'), 'age': ('4', None, '3')}


def test_without_header_columns_have_numbers(tmp_path):
    path = write(tmp_path, 'img00000000.png,1\nimg00000002.png,0\n')
    assert read_attributes(path, NAMES).columns == {'column 2': ('1', None, '0')}


def test_celeba(tmp_path):
    path = write(tmp_path, '2\nSmiling Male\n000001.jpg  1 -1\n000002.jpg -1 -1\n', 'list_attr_celeba.txt')
    found = read_attributes(path, ['000002.png', '000001.png'])
    assert found.columns == {'Smiling': ('-1', '1'), 'Male': ('-1', '-1')}


def test_split_tells_files_of_one_name_apart(tmp_path):
    rows = ['split,file,hair', 'train,img00000000.png,red', 'val,img00000000.png,', 'val,img00000001.png,grey']
    path = write(tmp_path, '\n'.join(rows))
    assert read_attributes(path, NAMES, split='train').columns == {'hair': ('red', None, None)}
    assert read_attributes(path, NAMES, split='val').columns == {'hair': (None, 'grey', None)}
    assert read_attributes(path, NAMES, split=('valid', 'val', 'train')).columns == {'hair': (None, 'grey', None)}
    with pytest.raises(UserError, match='two rows for img00000000.png'):
        read_attributes(path, NAMES)
    with pytest.raises(UserError, match='no row of split test'):
        read_attributes(path, NAMES, split='test')


def test_numbered_images_find_rows_of_other_names_by_order_and_say_so(tmp_path):
    path = write(tmp_path, 'file,emotion\n000003.jpg,c\n000001.jpg,a\n000002.jpg,b\n')
    found = read_attributes(path, NAMES)
    assert found.columns == {'emotion': ('a', 'b', 'c')} and found.note and 'order' in found.note
    # Images of a part of the data set keep their numbers.
    assert read_attributes(path, [NAMES[2], NAMES[0]]).columns == {'emotion': ('c', 'a')}
    with pytest.raises(UserError, match='not as many: 2 rows, 3 images'):
        read_attributes(write(tmp_path, 'file,emotion\n1.jpg,a\n2.jpg,b\n', 'two.csv'), NAMES)


def test_ambiguous_last_parts_are_not_guessed(tmp_path):
    path = write(tmp_path, 'file,hair\n0.png,red\nb/0.png,grey\n1.png,brown\n')
    assert read_attributes(path, ['a/0.png', 'b/0.png', '1.png']).columns == {'hair': (None, 'grey', 'brown')}


@pytest.mark.parametrize(('labels', 'columns'), [
    ([1, 0], {'class': ('1', '0', None)}),
    ([[0, 1], [1, 0]], {'class': ('1', '0', None)}),
    ([[0.5, 1], [1, 1]], {'label 0': ('0.5', '1', None), 'label 1': ('1', '1', None)}),
])
def test_dataset_json_alone_in_a_zip_and_in_a_folder(tmp_path, labels, columns):
    text = json.dumps({'labels': [[name, label] for name, label in zip(NAMES, labels)]})
    write(tmp_path, text, 'dataset.json')
    with zipfile.ZipFile(tmp_path / 'data.zip', 'w') as archive:
        archive.writestr('dataset.json', text)
    for path in (tmp_path / 'dataset.json', tmp_path / 'data.zip', tmp_path):
        assert read_attributes(str(path), NAMES).columns == columns


def test_columns_by_name_and_their_classes(tmp_path):
    found = read_attributes(write(tmp_path, 'file,hair\nimg00000000.png,red\nimg00000001.png,\nimg00000002.png,red\n'),
                            NAMES)
    assert found.classes('hair') == {'red': 2}
    with pytest.raises(UserError, match="no column 'age'; it has hair"):
        found.column('age')


@pytest.mark.parametrize(('text', 'message'), [
    ('', 'expected a column of file names'),
    ('file\na.png\n', 'expected a column of file names'),
    ('file,hair\n', 'no rows'),
    ('file,hair\na.png,red,long\n', 'row 2 has 3 fields, the first 2'),
    ('file,hair,hair\na.png,red,long\n', "two columns are called 'hair'"),
    ('file,hair\nother.png,red\n', 'not as many: 1 rows, 3 images'),
    ('file,hair\nother,red\n', 'none of its rows names an image'),
])
def test_bad_tables_get_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_attributes(write(tmp_path, text), NAMES)
    assert 'labels.csv' in str(caught.value) and '\n' not in str(caught.value)


def test_bad_files_get_one_line(tmp_path):
    (tmp_path / 'bytes.csv').write_bytes(b'\xff\xfe\x00')
    for path, message in [('none.csv', 'cannot be read'), ('bytes.csv', 'not a text file'), ('none.json', 'cannot be')]:
        with pytest.raises(UserError, match=message):
            read_attributes(str(tmp_path / path), NAMES)
    write(tmp_path, '{"labels": null}', 'dataset.json')
    with pytest.raises(UserError, match='has no labels'):
        read_attributes(str(tmp_path), NAMES)
