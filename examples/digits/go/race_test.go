//go:build race

package main

// slow: the race detector makes these loops thirty times slower; what it can see is the
// same in a few steps.
const slow = true
