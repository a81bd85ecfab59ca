package objects

import "sync"

const (
	// splitSize is from which size on two goroutines copy: one does not use all of the
	// memory's bandwidth.
	splitSize = 32 << 20
	// piece is populated, then copied while its page tables are in the caches.
	piece = 4 << 20
	// populateSize is from which size on one system call is cheaper than the faults.
	populateSize = 256 << 10
)

// Copy copies src to dst, which is at least as long. fresh: this process has not written
// there before.
func Copy(dst, src []byte, fresh bool) {
	dst = dst[:len(src)]
	if len(src) < splitSize {
		part(dst, src, fresh)
		return
	}
	half := (len(src)/2 + 4095) &^ 4095
	var wg sync.WaitGroup
	wg.Go(func() { part(dst[half:], src[half:], fresh) })
	part(dst[:half], src[:half], fresh)
	wg.Wait()
}

func part(dst, src []byte, fresh bool) {
	if !fresh || len(src) < populateSize {
		copy(dst, src)
		return
	}
	for len(src) > 0 {
		n := min(len(src), piece)
		populate(dst[:n])
		copy(dst[:n], src[:n])
		dst, src = dst[n:], src[n:]
	}
}
