"""The compiled loops that turn a slice of labels into contours, and contours into a slice of labels.

Threads and rounding: see :mod:`ctseg.compiled.declaring`; a call works on a whole slice.

A plane of colours has a border of zeros around it; 0 is no colour. Its lattice has a vertex at every corner of a pixel:
vertex (r, c) lies at row ``r - 0.5`` and column ``c - 0.5`` of the slice, between the pixels
``plane[r : r + 2, c : c + 2]``. A loop is walked with its colour on the right, and turns right where two pixels of it
touch by a corner alone, so that parts are connected by edges, and holes by edges and corners. Directions: 0 is along
the columns (east), 1 along the rows (south), 2 west, 3 north.
"""

# mypy: disable-error-code="attr-defined,no-untyped-call,call-overload"

import numpy as np

from ctseg.compiled.declaring import array, f8, i4, i8, kernel, read_only, u1, u2

_TOP, _BOTTOM, _WRITTEN = 1, 2, 4
_PER_MM = 1e6
_DECIMALS = 6


@kernel(read_only(u2, 2), i8, i8, i8, i8, returns=i8)
def turn_at(plane, row, column, direction, colour):  # type: ignore[no-untyped-def]  # noqa: D103
    if direction == 0:
        right, left = plane[row + 1, column + 1], plane[row, column + 1]
    elif direction == 1:
        right, left = plane[row + 1, column], plane[row + 1, column + 1]
    elif direction == 2:
        right, left = plane[row, column], plane[row + 1, column]
    else:
        right, left = plane[row, column + 1], plane[row, column]
    if right != colour:
        return (direction + 1) & 3
    if left != colour:
        return direction
    return (direction + 3) & 3


@kernel(read_only(u2, 2), array(u1, 2), i8, i8, i8, i8, returns=i8)
def walk_loop(plane, seen, row, column, direction, colour):  # type: ignore[no-untyped-def]  # noqa: D103
    corners = 0
    at_row, at_column, at_direction = row, column, direction
    while True:
        if at_direction == 0:
            seen[at_row, at_column] |= _TOP
            at_column += 1
        elif at_direction == 1:
            at_row += 1
        elif at_direction == 2:
            at_column -= 1
            seen[at_row, at_column] |= _BOTTOM
        else:
            at_row -= 1
        after = turn_at(plane, at_row, at_column, at_direction, colour)
        corners += after != at_direction
        at_direction = after
        if at_row == row and at_column == column and at_direction == direction:
            return corners


@kernel(read_only(u2, 2), array(u1, 2), array(i4, 2), array(i8, 1))
def join_holes(plane, seen, channels, counts):  # type: ignore[no-untyped-def]
    """Join each hole to the loop above it by a channel of no width, and count what the contours will hold.

    The channel runs straight north from the hole's first corner, in rows and then in columns. Every pixel beside it is
    of the loop's colour, so it ends at a loop of the same part, which begins further north: the loops of a part
    are joined to a tree, and no two channels touch. All of them together visit a vertex once.

    Args:
        plane: Colours, with the border.
        seen: (vertices along rows, along columns), zeros; which edges east of a vertex belong to a loop of the pixel
            below (1) and of the pixel above (2).
        channels: Of the same shape, zeros; 1 + the row of the other end of a channel.
        counts: Contours, and at most how many points; written.
    """
    counts[:] = 0
    for row in range(plane.shape[0] - 1):
        for column in range(plane.shape[1] - 2):
            above, below = plane[row, column + 1], plane[row + 1, column + 1]
            if above == below:
                continue
            if below != 0 and not seen[row, column] & _TOP:
                counts[0] += 1
                counts[1] += walk_loop(plane, seen, row, column, 0, below)
            if above != 0 and not seen[row, column] & _BOTTOM:
                counts[1] += walk_loop(plane, seen, row, column, 1, above) + 4
                end = row - 1
                while plane[end, column] == above and plane[end, column + 1] == above:
                    end -= 1
                channels[row, column], channels[end, column] = end + 1, row + 1


@kernel(read_only(u2, 2), array(u1, 2), read_only(i4, 2), array(i4, 2), array(i8, 1), array(u2, 1))
def write_contours(plane, seen, channels, points, ends, colours):  # type: ignore[no-untyped-def]  # noqa: D417
    """Write the contour of each part, its holes joined to it; only vertices at which it turns.

    Args:
        plane: As :func:`join_holes` had it, with ``seen`` and ``channels`` as it left them.
        points: (points, 2): row and column of each vertex; written.
        ends: One past the last point of each contour; written.
        colours: Of each contour; written.
    """
    count, number = 0, 0
    for first_row in range(plane.shape[0] - 1):
        for first_column in range(plane.shape[1] - 2):
            colour = plane[first_row + 1, first_column + 1]
            if colour == 0 or plane[first_row, first_column + 1] == colour:
                continue
            if seen[first_row, first_column] & _WRITTEN:
                continue
            row, column, direction = first_row, first_column, 0
            while True:
                if direction == 0:
                    seen[row, column] |= _WRITTEN
                    column += 1
                elif direction == 1:
                    row += 1
                elif direction == 2:
                    column -= 1
                else:
                    row -= 1
                if channels[row, column] != 0 and plane[row + 1, column] == colour:
                    other = channels[row, column] - 1
                    through = 1 if other > row else 3
                    if through != direction:
                        points[count, 0], points[count, 1] = row, column
                        count += 1
                    row = other
                    direction = through
                    # the hole goes on south; the loop goes on as it would have without the channel
                    after = 1 if through == 1 else 3 if plane[row, column + 1] == colour else 0
                else:
                    after = turn_at(plane, row, column, direction, colour)
                if after != direction:
                    points[count, 0], points[count, 1] = row, column
                    count += 1
                direction = after
                if row == first_row and column == first_column and direction == 0:
                    break
            ends[number] = count
            colours[number] = colour
            number += 1


@kernel(read_only(f8, 1), i8, array(u1, 1), i8, returns=i8)
def write_decimals(values, count, text, length):  # type: ignore[no-untyped-def]  # noqa: D103
    for index in range(count):
        value = values[index]
        micro = np.int64(np.floor(abs(value) * _PER_MM + 0.5))
        if value < 0 and micro > 0:
            text[length] = 45  # -
            length += 1
        whole, part = micro // 1000000, micro % 1000000
        digits = 1
        while whole // 10**digits > 0:
            digits += 1
        for place in range(digits):
            text[length + place] = 48 + whole // 10 ** (digits - 1 - place) % 10
        length += digits
        if part > 0:
            text[length] = 46  # .
            length += 1
            places = _DECIMALS
            while part % 10 == 0:
                part //= 10
                places -= 1
            for place in range(places):
                text[length + place] = 48 + part // 10 ** (places - 1 - place) % 10
            length += places
        text[length] = 92  # backslash
        length += 1
    return length


@kernel(
    read_only(i4, 2), read_only(i8, 1), read_only(f8, 1), read_only(f8, 1), read_only(f8, 1), array(u1, 1), array(i8, 1)
)
def write_texts(points, ends, corner, row_step, column_step, text, text_ends):  # type: ignore[no-untyped-def]  # noqa: D417
    """Write the points of contours as DICOM's decimal strings, in millimetres with six decimals at most.

    Args:
        points: (points, 2): row and column of each vertex.
        ends: One past the last point of each contour.
        corner: (3,) where vertex (0, 0) lies.
        row_step: (3,) from a vertex to that of the next row; ``column_step`` to that of the next column.
        text: Written: x, y and z of each point, all separated by a backslash; a space at the end if that makes the
            length even.
        text_ends: One past the last byte of each contour; written.
    """
    length, first = 0, 0
    position = np.empty(3)
    for number in range(ends.shape[0]):
        begin = length
        for index in range(first, ends[number]):
            for axis in range(3):
                position[axis] = corner[axis] + points[index, 0] * row_step[axis] + points[index, 1] * column_step[axis]
            length = write_decimals(position, 3, text, length)
        length -= 1  # the last backslash
        if (length - begin) % 2:
            text[length] = 32
            length += 1
        text_ends[number] = length
        first = ends[number]


@kernel(read_only(f8, 2), array(u1, 2))
def toggle_contour(points, plane):  # type: ignore[no-untyped-def]
    """Toggle the pixels in which rows enter and leave a closed contour; filled by :func:`fill_toggled`.

    Args:
        points: (points, 2): row and column of each, where pixel centres are whole numbers.
        plane: (rows, columns); written.
    """
    rows, columns = plane.shape
    for index in range(points.shape[0]):
        after = index + 1 if index + 1 < points.shape[0] else 0
        row, column = points[index, 0], points[index, 1]
        other_row, other_column = points[after, 0], points[after, 1]
        if other_row < row:
            row, column, other_row, other_column = other_row, other_column, row, column
        first = min(max(np.ceil(row), 0.0), np.float64(rows))
        last = min(max(np.ceil(other_row), 0.0), np.float64(rows))
        slope = (other_column - column) / (other_row - row) if other_row > row else 0.0
        for line in range(np.int64(first), np.int64(last)):
            entered = np.ceil(column + (line - row) * slope)
            if entered < columns:
                plane[line, np.int64(max(entered, 0.0))] ^= 1


@kernel(array(u1, 2))
def fill_toggled(plane):  # type: ignore[no-untyped-def]  # noqa: D103
    for row in range(plane.shape[0]):
        inside = plane[row, 0]
        for column in range(1, plane.shape[1]):
            inside ^= plane[row, column]
            plane[row, column] = inside
