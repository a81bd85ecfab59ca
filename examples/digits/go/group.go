package main

// group is the ranks that train together. Its two operations are what the models need of
// a collective: all ranks call them in the same order.
type group struct {
	rank, size int
	sum        func([]float64) error          // every rank gets the sum over all ranks
	empty      func(n int) ([]float64, error) // n zeros, where sum is fastest
	close      func() error
}
