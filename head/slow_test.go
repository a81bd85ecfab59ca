package head

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

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

// TestReplacedTakesNoOutput: what a head is given that does not know yet that another one has
// replaced it is not acknowledged; the next one has looked already at what there is.
func TestReplacedTakesNoOutput(t *testing.T) {
	c := newCluster(t, 1)
	c.configure(wire.HeadConfig{Name: "test", Dir: c.dir, SpecPath: "/spec.toml", SpecText: "version = 1\n", Roam: "p",
		Pools: []wire.Pool{{Name: "p", Backend: "fake", Min: 1, Max: 1}}})
	c.opts = func(o *Options) { o.checkEvery = time.Hour }
	c.hold = true
	c.start()
	r := c.request()
	c.mu.Lock()
	a := newAgent(c, r.Nodes[0], r.Epochs[0], r)
	a.gate = make(chan struct{}) // its task does not end
	c.startAgent(a)
	c.mu.Unlock()
	mustAsk[wire.Submitted](t, c.client(), wire.MsgSubmit, wire.Submit{Token: "t", Spec: array(1)})
	acked := func() int64 { a.mu.Lock(); defer a.mu.Unlock(); return a.acked[1] }
	within(t, "output is acknowledged", func() bool { return acked() > 0 })
	had := acked()
	j, _, err := journal.Open(filepath.Join(c.dir, "journal"), journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close(bounded(t))
	a.mu.Lock()
	a.refused = nil
	b := wire.LogFrame{Stream: 1, Length: 5, Attempt: 1, Time: 1}.Append(a.spool[1])
	b = append(b, "more\n"...)
	a.spool[1] = b
	a.mu.Unlock()
	a.poke()
	within(t, "the output is refused", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.refused != nil || a.acked[1] != had
	})
	if acked() != had {
		t.Errorf("%d bytes are acknowledged, %d were before", acked(), had)
	}
	// Nor is it when an agent asks where to go on.
	a.mu.Lock()
	con := a.session
	a.mu.Unlock()
	st, err := con.Open(bounded(t), wire.StreamLogs)
	if err != nil {
		t.Fatal(err)
	}
	enc, _ := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	gap := wire.LogBatch{Job: 1, Node: a.node, Epoch: a.epoch, From: had + 1000, To: had + int64(1000+len(b)), Zstd: enc.EncodeAll(b, nil)}
	if err := st.WriteMsg(wire.MsgLogBatch, gap); err != nil {
		t.Fatal(err)
	}
	var m wire.LogAck
	if typ, body, err := st.ReadMsg(); err == nil && typ == wire.MsgLogAck && wire.Unmarshal(body, &m) == nil && m.To > had {
		t.Errorf("%d bytes are acknowledged after a gap, %d were before", m.To, had)
	}
	// What it has not opened yet is the other one's.
	if _, err := c.head.record.Have(2, a.node, a.epoch); !errs.Is(err, errs.Fenced) {
		t.Errorf("it opens output of another job: %v", err)
	}
}
