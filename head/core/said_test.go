package core

import (
	"strings"
	"testing"

	"launcher/wire"
)

// What a backend says of a node that has gone silent is told with it: it is suspended.
func TestSilentAndSaid(t *testing.T) {
	c := granted(t, wire.Pool{}, 1)
	asked := false
	for now := int64(3); now <= 20; now++ {
		for _, e := range c.Step(now*second, Tick{}).Effects {
			if _, ok := e.(QueryAllocs); ok {
				asked = asked || now > 5
				c.Step(now*second, AllocStatus{Pool: "burst", Items: []AllocItem{{Handle: []byte("h1"), State: AllocRunning, Why: "Slurm job 1 is suspended"}}})
			}
		}
		if now == 12 {
			if why := strings.Join(c.whyPool(c.pools["burst"]), "\n"); !strings.Contains(why, "burst-0 does not answer: Slurm job 1 is suspended") || c.nodeInfos()[0].Why != "Slurm job 1 is suspended" {
				t.Errorf("while it is suspect: %s, %+v", why, c.nodeInfos()[0])
			}
		}
	}
	if d := c.d.st.Nodes["burst-0"]; !asked || d.State != nodeLost || d.Cause != "silent for 15 s; Slurm job 1 is suspended" {
		t.Errorf("lost: asked %v, %+v", asked, d)
	}
}
