"""Who belongs to whom, so that all together costs the least: queries to regions in learning, regions to regions in judging.

R rows   C columns
"""

import numpy as np


def assignment(cost_RC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns), rows ascending, a pair each, min(R, C) of them, whose costs add up to the least that is possible.

    Shortest augmenting paths with potentials (Kuhn, Munkres, Jonker and Volgenant), O(R R C).
    """
    if len(cost_RC) > cost_RC.shape[1]:
        columns, rows = assignment(cost_RC.T)
        order = np.argsort(rows)
        return rows[order], columns[order]
    count_R, count_C = cost_RC.shape
    row_price_R, price_C = np.zeros(count_R), np.zeros(count_C)
    row_of_C = np.full(count_C, -1)
    for start in range(count_R):
        row, reached_C, came_C = start, np.full(count_C, np.inf), np.full(count_C, -1)
        done_C, column = np.zeros(count_C, bool), -1
        while row >= 0:
            base = 0.0 if column < 0 else reached_C[column]
            way_C = base + cost_RC[row] - row_price_R[row] - price_C
            nearer_C = ~done_C & (way_C < reached_C)
            reached_C[nearer_C], came_C[nearer_C] = way_C[nearer_C], column
            column = int(np.where(done_C, np.inf, reached_C).argmin())
            done_C[column] = True
            row = int(row_of_C[column])
        passed_C = done_C & (row_of_C >= 0)
        row_price_R[start] += reached_C[column]
        row_price_R[row_of_C[passed_C]] += reached_C[column] - reached_C[passed_C]
        price_C[passed_C] -= reached_C[column] - reached_C[passed_C]
        while column >= 0:
            before = int(came_C[column])
            row_of_C[column] = start if before < 0 else row_of_C[before]
            column = before
    columns = np.flatnonzero(row_of_C >= 0)
    order = np.argsort(row_of_C[columns])
    return row_of_C[columns][order], columns[order]
