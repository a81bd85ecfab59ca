package head

import (
	"testing"
	"time"

	"launcher/internal/clock"
	"launcher/internal/errs"
	"launcher/wire"
)

// TestCertLife: a node that was without a head for all of the grace has a valid certificate.
func TestCertLife(t *testing.T) {
	for grace, want := range map[time.Duration]time.Duration{0: 24 * time.Hour, time.Hour: 24 * time.Hour, 7 * 24 * time.Hour: 21 * 24 * time.Hour} {
		h := &head{config: wire.HeadConfig{Grace: int64(grace)}}
		if got := h.certLife(); got != want {
			t.Errorf("grace %s: %s, not %s", grace, got, want)
		}
	}
}

// TestLonely: a head on a host ends when nobody has had a session with it for the grace
// time, and not before.
func TestLonely(t *testing.T) {
	c := newCluster(t, 0)
	now := clock.NewFake(time.Now().UnixNano())
	c.opts = func(o *Options) { o.Clock = now }
	conf, err := ReadConfig(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	conf.Away, conf.Grace = true, int64(time.Minute)
	c.configure(conf)
	c.start()
	s := c.client()
	mustAsk[wire.ClusterInfo](t, s, wire.MsgInfo, wire.InfoRequest{})
	now.Advance(time.Hour)
	mustAsk[wire.ClusterInfo](t, s, wire.MsgInfo, wire.InfoRequest{})
	_ = s.Close()
	within(t, "the head has seen it go", func() bool {
		c.head.guests.mu.Lock()
		defer c.head.guests.mu.Unlock()
		return c.head.guests.n == 0
	})
	now.Advance(59 * time.Second)
	mustAsk[wire.ClusterInfo](t, c.client(), wire.MsgInfo, wire.InfoRequest{}) // it is there
	c.kill()
	c.start() // and begins to wait anew
	now.Advance(time.Minute)
	select {
	case err := <-c.end:
		if !errs.Is(err, errs.Lost) {
			t.Errorf("the head ended: %v", err)
		}
		c.head = nil
	case <-time.After(testBound):
		t.Error("the head lives on with nobody")
	}
}
