package objects

import "sync"

const (
	// splitSize is from which size on two goroutines are at work: one does not use all of
	// the memory's bandwidth.
	splitSize = 32 << 20
	// piece is populated, then copied while its page tables are in the caches.
	piece = 4 << 20
	// populateSize is from which size on one system call is cheaper than the faults.
	populateSize = 256 << 10
)

// Copy copies src to dst, which is at least as long. fresh: this process has not written
// there before, so its page tables are to be filled too.
func Copy(dst, src []byte, fresh bool) {
	dst = dst[:len(src)]
	switch {
	case len(src) < splitSize && (!fresh || len(src) < populateSize):
		copy(dst, src)
	case len(src) < splitSize:
		for at := 0; at < len(src); at += piece {
			end := min(at+piece, len(src))
			populate(dst[at:end])
			copy(dst[at:end], src[at:])
		}
	case fresh:
		behind(dst, src)
	default:
		half := (len(src)/2 + 4095) &^ 4095
		var wg sync.WaitGroup
		wg.Go(func() { copy(dst[half:], src[half:]) })
		copy(dst[:half], src[:half])
		wg.Wait()
	}
}

// behind copies piece by piece behind another goroutine that populates: two that populate
// would be in each other's way in the kernel.
func behind(dst, src []byte) {
	ready := make(chan int, len(src)/piece+1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for at := 0; at < len(src); at += piece {
			populate(dst[at:min(at+piece, len(src))])
			ready <- at
		}
		close(ready)
	})
	for at := range ready {
		copy(dst[at:], src[at:min(at+piece, len(src))])
	}
	wg.Wait()
}
