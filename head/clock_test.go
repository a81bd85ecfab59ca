package head

import (
	"sync/atomic"
	"testing"
	"time"
)

// TestClockSetBack: time passes at its rate when the wall clock is set back, timers fire
// when they should, and a wall clock set forwards is followed.
func TestClockSetBack(t *testing.T) {
	const sec = int64(time.Second)
	var wall, mono atomic.Int64
	wall.Store(1_000_000 * sec)
	s := &steady{wall: wall.Load, mono: mono.Load}
	start := s.Now()
	for _, x := range []struct{ wall, mono, want int64 }{
		{2, 2, 2},
		{-3600, 3, 3}, // set back
		{-3595, 8, 8},
		{-3590, 8, 8},
		{7200, 9, 7200}, // set forwards
		{10, 11, 7202},  // and right again
	} {
		wall.Store(start + x.wall*sec)
		mono.Store(x.mono * sec)
		if got := s.Now() - start; got != x.want*sec {
			t.Errorf("wall %+d s, %d s later: %s", x.wall, x.mono, time.Duration(got))
		}
	}

	s = newSteady()
	at := s.Now() + int64(20*time.Millisecond)
	s.wall = func() int64 { return time.Now().Add(-time.Hour).UnixNano() }
	timer := s.Timer()
	defer timer.Stop()
	timer.Reset(at)
	select {
	case <-timer.C():
		if s.Now() < at {
			t.Error("fired early")
		}
	case <-time.After(testBound):
		t.Fatal("a clock that was set back stops timers")
	}
}
