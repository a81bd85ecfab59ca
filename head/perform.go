package head

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"launcher/head/core"
	"launcher/head/record"
	"launcher/internal/errs"
	"launcher/wire"
)

// perform performs an effect. It is called by the releaser only and does not block.
func (h *head) perform(p performed) {
	switch e := p.effect.(type) {
	case core.SendAgent:
		if p.conn != nil && p.conn.epoch == e.Epoch {
			if w, ok := e.Msg.(wire.Welcome); ok {
				w.Addrs = h.reached()
				e.Msg = w
			}
			p.conn.send(e.Typ, e.Msg)
		}
	case core.DropAgent:
		if p.conn != nil {
			p.conn.drop(e.Err)
		}
	case core.Reply:
		h.reply(e)
	case core.SubmitNodes:
		h.submitNodes(e)
	case core.FindAllocs:
		h.findAllocs(e)
	case core.QueryAllocs:
		h.queryAllocs(e.Pool, e.Handles)
	case core.CancelAllocs:
		h.cancelAllocs(e)
	case core.JobChanged:
		h.ring(e.Job)
		h.tables.changed(e.Job, e.Ended)
	case core.JobLogsWanted:
		h.logs.want(e.Job, e.Parts)
	case core.DeleteCheckpoints:
		h.wg.Go(func() { h.deleteCheckpoints(e) })
	case core.TaskOver:
		h.outputs.over(e)
	case core.ConfigChanged:
		h.newConfig(e)
		h.wg.Go(h.keepConfig)
	case core.MoveHead:
		h.wg.Go(func() { h.move(e) })
	case core.Replaced:
		h.replaced(e.Err)
	case core.CloseDown:
		h.wg.Go(func() { h.closeDown(e.Left) })
	default:
		h.log.Error("an effect that the shell does not know", "effect", e)
	}
}

// bell gives a channel that is closed when something of the job changes.
func (h *head) bell(job wire.JobID) <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := h.bells[job]
	if b == nil {
		b = make(chan struct{})
		h.bells[job] = b
	}
	return b
}

func (h *head) ring(job wire.JobID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if b := h.bells[job]; b != nil {
		close(b)
		delete(h.bells, job)
	}
}

// checkpointName is what agents name the directory of a checkpoint. Paths come from
// agents, by way of the journal: only such directories are ever removed.
var checkpointName = regexp.MustCompile(`^step-[0-9]+\.a[0-9]+$`)

func (h *head) deleteCheckpoints(e core.DeleteCheckpoints) {
	for _, path := range e.Paths {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || !checkpointName.MatchString(filepath.Base(path)) {
			h.log.Warn("not removed: not the name of a checkpoint", "job", e.Job, "path", path)
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			h.log.Warn("cannot remove an old checkpoint", "job", e.Job, "err", err)
		}
	}
}

// newConfig takes over changed pools. Those that are gone are kept, since nodes of them
// may have to be given back.
func (h *head) newConfig(e core.ConfigChanged) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := &h.config
	old := slices.Concat(c.Pools, c.Gone)
	c.Pools, c.SpecText, c.SpecPath, c.Gone = e.Pools, e.SpecText, e.SpecPath, nil
	for _, p := range old {
		same := func(q wire.Pool) bool { return q.Name == p.Name }
		if !slices.ContainsFunc(c.Pools, same) && !slices.ContainsFunc(c.Gone, same) {
			c.Gone = append(c.Gone, p)
		}
	}
}

// pool finds a pool by name, also one that an update has removed.
func (h *head) pool(name string) (wire.Pool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range slices.Concat(h.config.Pools, h.config.Gone) {
		if p.Name == name {
			return p, nil
		}
	}
	return wire.Pool{}, errs.New(errs.NotFound, "there is no pool %q", name)
}

// keepConfig writes the configuration for the next head, and listens where nodes of new
// pools can reach it.
func (h *head) keepConfig() {
	h.configMu.Lock() // the newest is written last
	defer h.configMu.Unlock()
	h.mu.Lock()
	c := h.config
	h.mu.Unlock()
	err := record.WriteFile(filepath.Join(h.dir, configFile), wire.Marshal(c))
	if err == nil && h.state != h.dir { // for when it is at home again
		c.Dir, c.State, c.Seat, c.Away = h.state, "", "", false
		err = record.WriteFile(filepath.Join(h.state, configFile), wire.Marshal(c))
	}
	if err == nil {
		err = record.WriteFile(filepath.Join(h.state, specFile), []byte(c.SpecText))
	}
	if err == nil {
		err = h.widen()
	}
	if err != nil {
		h.log.Error("the changed configuration is not kept", "err", err)
	}
}

// closeDown ends the head once those who wait for the end have been told.
func (h *head) closeDown(left []string) {
	h.outputs.rest(h.ctx)
	h.tables.last(h.ctx)
	told := time.After(toldBound)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		h.mu.Lock()
		n := len(h.clients)
		h.mu.Unlock()
		if n == 0 {
			break
		}
		select {
		case <-tick.C:
			continue
		case <-told:
		case <-h.ctx.Done():
		}
		break
	}
	h.closeOnce.Do(func() {
		h.left = left
		close(h.closed)
	})
}

// toldBound is how long a head that ends waits for its clients to take their answers.
const toldBound = 2 * time.Second
