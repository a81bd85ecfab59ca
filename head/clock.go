package head

import (
	"sync"
	"time"

	"launcher/internal/clock"
)

// steady is the head's clock. It follows the wall clock forwards and never goes back:
// when the wall clock is set back, time passes on from where it was, as the kernel
// counts it. Else a clock set back by an hour would stop every bound of the core for an
// hour: no tick, no lost node, no deadline.
type steady struct {
	wall func() int64 // unix nanoseconds
	mono func() int64 // never set

	mu   sync.Mutex
	last int64 // guarded by mu; so is at
	at   int64 // mono at last
}

func newSteady() *steady {
	base := time.Now()
	return &steady{
		wall: func() int64 { return time.Now().UnixNano() },
		mono: func() int64 { return int64(time.Since(base)) },
	}
}

func (s *steady) Now() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, wall := s.mono(), s.wall()
	s.last = max(s.last+at-s.at, wall)
	s.at = at
	return s.last
}

func (s *steady) Timer() clock.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return steadyTimer{s, t}
}

type steadyTimer struct {
	s *steady
	t *time.Timer
}

func (t steadyTimer) C() <-chan time.Time { return t.t.C }
func (t steadyTimer) Stop()               { t.t.Stop() }
func (t steadyTimer) Reset(at int64)      { t.t.Reset(time.Duration(at - t.s.Now())) }
