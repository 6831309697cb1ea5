// A test is a function named as a sentence; the first expectation that fails ends the program.
#pragma once

#include <cstdio>
#include <cstdlib>

#define EXPECT_EQUAL(left, right)                                                        \
  do {                                                                                   \
    const auto left_value = (left);                                                      \
    const decltype(left_value) right_value = (right);                                    \
    if (!(left_value == right_value)) {                                                  \
      fprintf(stderr, "%s:%d: %s is %.17g, expected %.17g\n", __FILE__, __LINE__, #left, \
              static_cast<double>(left_value), static_cast<double>(right_value));        \
      exit(1);                                                                           \
    }                                                                                    \
  } while (false)

#define EXPECT_NEAR(left, right, tolerance)                                                 \
  do {                                                                                      \
    const double difference = static_cast<double>(left) - static_cast<double>(right);       \
    if (!(difference <= (tolerance) && -difference <= (tolerance))) {                       \
      fprintf(stderr, "%s:%d: %s is off by %.3g\n", __FILE__, __LINE__, #left, difference); \
      exit(1);                                                                              \
    }                                                                                       \
  } while (false)

#define RUN(test)          \
  do {                     \
    test();                \
    printf("%s\n", #test); \
  } while (false)
