//go:build !linux

package bench

func cores() []int { return []int{0} }

func pinned(i int, start func() error) error { return start() }

type cpu struct{}

func readCPU() cpu { return cpu{} }

func (c cpu) stolen(before cpu) bool { return false }
