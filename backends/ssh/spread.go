package ssh

import (
	"context"
	"crypto/rand"
	"math/bits"
	"net/netip"
	"sync"
	"time"
)

const (
	// lenderTurns is how many hosts one host gives the binary to at a time.
	lenderTurns = 2
	// lendTries is how many other hosts a host tries before it takes the binary from here.
	lendTries = 2
	// vainTries is after how many tries that failed one after the other hosts are taken not
	// to reach each other.
	vainTries = 4
	// slowCopy is after how long without a host that has it one more copy is sent from here,
	// up to maxCopies of them: the first host may be a slow one.
	slowCopy  = 10 * time.Second
	maxCopies = 4
	lendBound = 5 * time.Second
	// patience is how long a host waits for another one's first bytes; three times as long
	// for the next.
	patience = 3 * time.Second
)

// spread is who gives a binary to whom: from here it goes to one host, from there to the
// next ones, and so on, because the way from here is often the narrowest. A host that
// reaches none of those that have it takes it from here.
type spread struct {
	slow time.Duration // slowCopy

	mu      sync.Mutex
	lenders []*lender     // guarded by mu, as is what follows
	copies  int           // under way from here, to hosts that could take it from another
	since   time.Time     // of the first of them, or the newest lender
	vain    int           // tries in a row that failed
	changed chan struct{} // closed when something of this has
}

// lender is a host that has the binary.
type lender struct {
	client interface {
		Err() error
		Lend(ctx context.Context, secret string, at int64, from, to int) (port int, err error)
	}
	addr netip.Addr
	from int // ports that it may use, 0 any
	to   int
	busy int // guarded by spread.mu
}

func newSpread(slow time.Duration) *spread {
	return &spread{slow: slow, changed: make(chan struct{})}
}

// tell wakes all who wait. mu must be held.
func (s *spread) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// add makes a host one that others may take the binary from.
func (s *spread) add(l *lender) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lenders = append(s.lenders, l)
	s.since = time.Now()
	s.tell()
}

// turn waits until the host at addr may take the binary, and says from whom: nil is from
// here. It is to be given back, with whether it went well. alive is called now and then.
func (s *spread) turn(ctx context.Context, addr netip.Addr, tried map[*lender]bool, alive func()) (*lender, func(ok bool), error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		s.mu.Lock()
		l, done := s.pick(addr, tried)
		changed := s.changed
		s.mu.Unlock()
		if done != nil {
			return l, done, nil
		}
		select {
		case <-changed:
		case <-tick.C:
			alive()
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
}

// pick gives a turn, if there is one. mu must be held.
func (s *spread) pick(addr netip.Addr, tried map[*lender]bool) (*lender, func(ok bool)) {
	if len(tried) >= lendTries || s.vain >= vainTries {
		return nil, func(bool) {}
	}
	var best *lender
	waits := false
	live := s.lenders[:0]
	for _, l := range s.lenders {
		if l.client.Err() != nil {
			continue
		}
		live = append(live, l)
		switch {
		case tried[l]:
		case l.busy >= lenderTurns:
			waits = true
		case best == nil || near(addr, l.addr) > near(addr, best.addr):
			best = l
		}
	}
	s.lenders = live
	switch {
	case best != nil:
		best.busy++
		return best, func(ok bool) { s.returned(best, ok) }
	case waits:
		return nil, nil
	}
	if s.copies == 0 {
		s.since = time.Now()
	}
	if s.copies >= min(maxCopies, 1+int(time.Since(s.since)/s.slow)) {
		return nil, nil
	}
	s.copies++
	return nil, func(bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.copies--
		s.tell()
	}
}

func (s *spread) returned(l *lender, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.busy--
	if s.vain++; ok {
		s.vain = 0
	}
	s.tell()
}

// near is how many leading bits two addresses share: those of one network share many.
func near(a, b netip.Addr) int {
	if a.BitLen() != b.BitLen() {
		return -1
	}
	x, y := a.AsSlice(), b.AsSlice()
	for i := range x {
		if d := x[i] ^ y[i]; d != 0 {
			return 8*i + bits.LeadingZeros8(d)
		}
	}
	return a.BitLen()
}

// lend has a host give its binary to whoever comes with the secret, once.
func (l *lender) lend(ctx context.Context, at int64) (port int, secret string, err error) {
	ctx, cancel := context.WithTimeout(ctx, lendBound)
	defer cancel()
	secret = rand.Text()
	port, err = l.client.Lend(ctx, secret, at, l.from, l.to)
	return port, secret, err
}
