// The matrices of Winograd's convolution F(m, r), derived at compile time.
//
// Toom and Cook: the product of polynomials of m and r coefficients has a = m + r - 1 coefficients
// and is known from its values at a points. The transpose of that algorithm computes m outputs of
// a correlation with r taps from a inputs (Lavin and Gray 2015, arXiv 1509.09308; Winograd 1980):
//
//   y = A^T ((G w) * (B^T x)),  elementwise *
//
// The points are 0, 1, -1, 2, -2, 1/2, -1/2, the first a - 1 of them, and infinity. With point p_j,
// M_j(x) = prod over k != j of (x - p_k) and N_j = M_j(p_j): A[j][i] = p_j^i, G[j][i] = p_j^i / N_j,
// and row j of B^T holds the coefficients of M_j. At infinity A and G have the highest coefficient
// alone, and B^T the coefficients of prod over k of (x - p_k). All of A and B is exact in binary.
#pragma once

#include <array>

constexpr double winograd_points[] = {0, 1, -1, 2, -2, 0.5, -0.5};

// A matrix of a transform: `to` rows, one per point.
template <int to, int from> struct Matrix {
  static constexpr int rows = to, columns = from;
  std::array<std::array<double, from>, to> at{};
};

template <int m, int r> struct Winograd {
  static constexpr int outputs = m, taps = r, size = m + r - 1;
  static_assert(size % 2 == 0 && size <= 8, "points come in pairs p, -p besides 0 and infinity");

  static constexpr double n_j(int j) {
    double product = 1;
    for (int k = 0; k < size - 1; ++k)
      if (k != j) product *= winograd_points[j] - winograd_points[k];
    return product;
  }

  // p_j^i / divisor_j, and the highest coefficient at infinity
  template <int columns> static constexpr Matrix<size, columns> values(bool divided) {
    Matrix<size, columns> v;
    for (int j = 0; j < size - 1; ++j) {
      double power = 1;
      for (int i = 0; i < columns; ++i, power *= winograd_points[j])
        v.at[j][i] = power / (divided ? n_j(j) : 1);
    }
    v.at[size - 1][columns - 1] = 1;
    return v;
  }

  static constexpr Matrix<size, size> polynomials() {
    Matrix<size, size> b;
    for (int j = 0; j < size; ++j) {
      b.at[j][0] = 1;
      for (int k = 0, degree = 0; k < size - 1; ++k) {
        if (k == j) continue;
        ++degree;
        for (int i = degree; i >= 0; --i)
          b.at[j][i] = (i ? b.at[j][i - 1] : 0) - winograd_points[k] * b.at[j][i];
      }
    }
    return b;
  }

  static constexpr Matrix<size, m> A = values<m>(false);
  static constexpr Matrix<size, r> G = values<r>(true);
  static constexpr Matrix<size, size> B = polynomials();  // B^T in the papers
};
