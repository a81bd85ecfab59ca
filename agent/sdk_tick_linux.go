package agent

import (
	"context"
	"time"
)

const (
	// tickEvery is how often the reactor hears of time while something runs, and restEvery
	// while nothing does.
	tickEvery = 20 * time.Millisecond
	restEvery = time.Second
)

// run ticks the reactor until ctx ends.
func (s *sdkServer) run(ctx context.Context) error {
	t := time.NewTimer(restEvery)
	defer t.Stop()
	named := s.named
	for {
		select {
		case <-named:
			named = nil
			s.a.links.dir.watch(s.number) // its own life: it is told when it is to leave
		case <-t.C:
			next := restEvery
			s.turn(func(now int64) {
				s.oom.look(time.Now())
				s.keepBusy(now)
				s.core.Tick(now)
				s.a.core.SetLasting(s.core.Lasting(), s.core.OnlyHere())
				s.demand()
				s.tellNames()
				for _, cl := range s.clients {
					if len(cl.spaces) > 0 {
						s.giveSpace(cl)
					}
				}
				if s.resting = !s.busy(); !s.resting {
					next = tickEvery
				}
			})
			t.Reset(next)
		case <-s.poke:
			t.Reset(tickEvery)
		case err := <-s.broken:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// busy reports whether something may have to be done within a moment. a.mu is held.
func (s *sdkServer) busy() bool {
	if st := s.core.Stats(); st.Running > 0 || st.Queued > 0 {
		return true
	}
	for _, cl := range s.clients {
		if len(cl.spaces) > 0 {
			return true
		}
	}
	return false
}

// hurry ends a rest. a.mu is held.
func (s *sdkServer) hurry() {
	s.resting = false
	select {
	case s.poke <- struct{}{}:
	default:
	}
}
