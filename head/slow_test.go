package head

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"launcher/head/journal"
	"launcher/internal/errs"
	"launcher/wire"
)

// TestClientsThatDoNotRead: some follow a job's output, and many watch it, without ever
// reading. The job ends all the same, and so does the head.
func TestClientsThatDoNotRead(t *testing.T) {
	c := newCluster(t, 1)
	line := strings.Repeat("x", 64<<10)
	c.task = func(wire.Item) (string, int32) { return line, 0 }
	c.start()
	s := c.client()
	slow := c.client()
	mustAsk[wire.Submitted](t, s, wire.MsgSubmit, wire.Submit{Spec: array(100)})
	for i := range 205 {
		st, err := slow.Open(bounded(t), wire.StreamRequest)
		if err == nil && i < 5 {
			err = st.WriteMsg(wire.MsgLogs, wire.LogsRequest{Job: 1, Task: -1, Rank: -1, Follow: true})
		} else if err == nil {
			err = st.WriteMsg(wire.MsgWatch, wire.Watch{Job: 1})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if info := watch(t, s, 1); info.State != wire.StateDone || info.Done != 100 {
		t.Errorf("the job: %+v", info)
	}
	if got := output(t, s, wire.LogsRequest{Job: 1, Task: -1, Rank: -1, Follow: true}); len(got) != 100 {
		t.Errorf("output of %d tasks", len(got))
	}
	ended := make(chan struct{})
	go func() {
		c.kill()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(testBound):
		t.Fatal("the head waits for clients that do not read")
	}
}

// TestReplacedWhileIdle: a head that has nothing to write ends too when another one has
// taken its journal over.
func TestReplacedWhileIdle(t *testing.T) {
	c := newCluster(t, 1)
	c.opts = func(o *Options) { o.checkEvery = 5 * time.Millisecond }
	c.start()
	j, _, err := journal.Open(filepath.Join(c.dir, "journal"), journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close(bounded(t))
	select {
	case err := <-c.end:
		c.head = nil
		if !errs.Is(err, errs.Fenced) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(testBound):
		t.Error("the head goes on")
	}
}
