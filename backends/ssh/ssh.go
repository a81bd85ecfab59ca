// Package ssh grants nodes on machines that are reached by ssh and have nothing installed:
// one node a host.
//
// On each host runs, as long as the connection lives, one process of ours: the binary that
// was copied there (provision.sh, provision.go), as `launcher host` (package host), which
// does on its machine what package local does here. Many requests share the one channel.
// Nodes do not depend on it.
//
// What was asked of a host is kept here, in clusters/NAME/ssh/TOKEN.json, written before
// the host is asked: a submission that has no file was never sent. When an allocation has
// ended, its end is written there, and the host forgets it: what is left on a host is the
// binary.
package ssh

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"launcher/backends"
	"launcher/backends/records"
	"launcher/backends/ssh/host"
	"launcher/internal/errs"
	"launcher/wire"
)

// Name is the backend's name in a spec.
const Name = "ssh"

// maxHosts is at how many hosts a change may be under way at a time.
const maxHosts = 64

// Backend starts nodes on hosts.
type Backend struct {
	home string
	dial dialer
	ctx  context.Context
	end  context.CancelFunc
	wg   sync.WaitGroup
	// slow and patience are slowCopy and patience, but in tests.
	slow, patience time.Duration
	// turns are those of submissions that are being worked on.
	turns records.Turns

	mu      sync.Mutex
	hosts   map[site]*link     // guarded by mu
	shelves map[string]*shelf  // by the path of the own binary; guarded by mu
	heads   map[string]headAt  // of clusters whose head is on a host, by name; guarded by mu
	spreads map[string]*spread // by the sum of a binary; guarded by mu
}

var (
	_ backends.Backend = (*Backend)(nil)
	_ backends.Watcher = (*Backend)(nil)

	_ backends.HeadHost = (*Backend)(nil)
)

func newBackend(home string, d dialer) *Backend {
	b := &Backend{home: home, dial: d, hosts: map[site]*link{}, shelves: map[string]*shelf{}, heads: map[string]headAt{}, spreads: map[string]*spread{}, slow: slowCopy, patience: patience}
	b.ctx, b.end = context.WithCancel(context.Background())
	return b
}

// Capabilities are the same for all hosts.
func (b *Backend) Capabilities() backends.Capabilities {
	return backends.Capabilities{
		Name: Name, Releasable: true, Cancellable: true, MaxPerCall: 1, Parallel: maxHosts, Tries: 1,
		DefaultMin: func(backends.Options) int { return 1 },
		Limit:      func(backends.Options) (int, string) { return 0, "" },
	}
}

// Close ends the connections; nodes run on.
func (b *Backend) Close() error {
	b.end()
	b.mu.Lock()
	var all []*link
	for _, l := range b.hosts {
		all = append(all, l)
	}
	b.mu.Unlock()
	for _, l := range all {
		l.hangUp()
	}
	b.wg.Wait()
	return b.dial.Close()
}

// Submit starts the node of r on its host.
func (b *Backend) Submit(ctx context.Context, r backends.Request) ([]backends.Alloc, error) {
	s, err := b.site(r)
	if err != nil {
		return nil, err
	}
	leave, err := b.turns.Enter(ctx, r.Token)
	if err != nil {
		return nil, err
	}
	defer leave()
	rec, ok, err := b.read(r.Cluster, r.Token)
	if err != nil {
		return nil, err
	}
	if ok && rec.Handle != nil {
		return []backends.Alloc{rec.alloc()}, nil
	}
	if !ok {
		rec = record{V: 1, Token: r.Token, Cluster: r.Cluster, ID: records.ClusterID(r.Join.CA), Node: r.Nodes[0], Epoch: r.Epochs[0], Site: s}
	}
	l := b.link(rec.Site, r.Binary)
	l.lendAt(r.Ports)
	c, err := l.get(ctx, true)
	if err != nil {
		return nil, err
	}
	if !ok {
		if err := b.write(rec); err != nil {
			return nil, err
		}
	}
	allocs, err := c.Submit(ctx, rec.ID, r)
	switch lost, _ := errors.AsType[*host.ConnError](err); {
	case lost != nil, err != nil && ctx.Err() != nil:
		return nil, errs.Wrap(errs.Unknown, err, "%s", s.Name) // Find asks what became of it
	case err != nil:
		b.drop(rec)
		return nil, errs.Wrap(errs.Unknown, err, "%s", s.Name)
	case len(allocs) != 1:
		return nil, errs.New(errs.Corrupt, "%s: %d allocations of one node", s.Name, len(allocs))
	}
	rec.Handle = allocs[0].Handle
	if err := b.write(rec); err != nil {
		return nil, err
	}
	return []backends.Alloc{rec.alloc()}, nil
}

// Find looks submissions up by token: in the files here, and, where an answer never came,
// at the host.
func (b *Backend) Find(ctx context.Context, cluster string, tokens []string) (map[string][]backends.Alloc, error) {
	found := map[string][]backends.Alloc{}
	var first error
	for _, t := range tokens {
		a, err := b.find(ctx, cluster, t)
		if err != nil && first == nil {
			first = err
		}
		if a != nil {
			found[t] = a
		}
	}
	return found, first
}

func (b *Backend) find(ctx context.Context, cluster, token string) ([]backends.Alloc, error) {
	leave, err := b.turns.Enter(ctx, token)
	if err != nil {
		return nil, err
	}
	defer leave()
	rec, ok, err := b.read(cluster, token)
	if err != nil || !ok {
		return nil, err
	}
	if rec.Handle != nil {
		return []backends.Alloc{rec.alloc()}, nil
	}
	c, err := b.link(rec.Site, "").get(ctx, false)
	if err != nil {
		return nil, err
	}
	m, err := c.Find(ctx, rec.ID, rec.Cluster, []string{token})
	if err != nil {
		return nil, err
	}
	if len(m[token]) == 0 {
		return nil, b.drop(rec)
	}
	rec.Handle = m[token][0].Handle
	if err := b.write(rec); err != nil {
		return nil, err
	}
	return []backends.Alloc{rec.alloc()}, nil
}

// bySite sorts handles by host and cluster; those that are not ours are left out.
func (b *Backend) bySite(handles [][]byte) map[group][]int {
	out := map[group][]int{}
	for i, h := range handles {
		if r, ok := parseHandle(h); ok {
			g := group{r.Site, r.ID}
			out[g] = append(out[g], i)
		}
	}
	return out
}

type group struct {
	site site
	id   string
}

// statusBound is how long a host may take to say how its nodes are.
const statusBound = 20 * time.Second

// Status asks each host. Of one that cannot be reached nothing new is known: its nodes are
// taken to run.
func (b *Backend) Status(ctx context.Context, handles [][]byte) ([]backends.Status, error) {
	out := make([]backends.Status, len(handles))
	for i := range out {
		out[i] = backends.Status{State: backends.Lost, Why: "not an allocation of this backend"}
	}
	var wg sync.WaitGroup
	for g, idx := range b.bySite(handles) {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, statusBound)
			defer cancel()
			b.statusOf(ctx, g, idx, handles, out)
		})
	}
	wg.Wait()
	return out, ctx.Err()
}

// statusOf fills in the states of a host's allocations.
func (b *Backend) statusOf(ctx context.Context, g group, idx []int, handles [][]byte, out []backends.Status) {
	var recs []record
	var ask [][]byte
	var open []int
	for _, i := range idx {
		r, _ := parseHandle(handles[i])
		if end := b.known(ctx, r); end != nil {
			out[i] = *end
			continue
		}
		recs, ask, open = append(recs, r), append(ask, r.Handle), append(open, i)
	}
	if len(ask) == 0 {
		return
	}
	c, err := b.link(g.site, "").get(ctx, false)
	var states []host.Status
	if err == nil {
		states, err = c.Status(ctx, g.id, ask)
	}
	if err != nil {
		for _, i := range open {
			out[i] = backends.Status{State: backends.Running, Why: g.site.Name + " cannot be asked: " + err.Error()}
		}
		return
	}
	for k, st := range states {
		i := open[k]
		out[i] = st.Status
		if !st.State.Ended() {
			continue
		}
		if line := lastLine(st.Log); line != "" {
			out[i].Why += "; its log ends: " + line
		}
		out[i].Why = g.site.Name + ": " + out[i].Why
		out[i] = b.ended(ctx, c, recs[k], out[i])
	}
}

// known gives the end of an allocation, if that is known and the host has been told to
// forget it: whoever hears of the last end may be about to end us.
func (b *Backend) known(ctx context.Context, r record) *backends.Status {
	leave, err := b.turns.Enter(ctx, r.Token)
	if err != nil {
		return nil
	}
	defer leave()
	kept, ok, err := b.read(r.Cluster, r.Token)
	if err != nil || !ok {
		return nil
	}
	return kept.End
}

// forgetBound is how long a host may take to forget; whoever asked need not wait for it.
const forgetBound = 10 * time.Second

// ended writes an end down and lets the host forget; an end that was told once stays.
func (b *Backend) ended(ctx context.Context, c *host.Client, r record, st backends.Status) backends.Status {
	leave, err := b.turns.Enter(ctx, r.Token)
	if err != nil {
		return st
	}
	defer leave()
	if kept, ok, err := b.read(r.Cluster, r.Token); err == nil && ok && kept.End != nil {
		return *kept.End
	}
	r.End = &st
	if b.write(r) == nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forgetBound)
		defer cancel()
		for { // what it keeps then is removed with the node's next life
			err := c.Forget(ctx, r.ID, [][]byte{r.Handle})
			if !errs.Is(err, errs.Unavailable) || c.Err() != nil || ctx.Err() != nil {
				break
			}
			pause(ctx, 0) // a process of it is just ending
		}
	}
	return st
}

func lastLine(s string) string {
	s = strings.TrimRight(s, "\n")
	s = s[strings.LastIndexByte(s, '\n')+1:]
	if len(s) > 300 {
		s = s[:300] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

// Cancel ends nodes. It returns when their hosts say that nothing of them is left.
func (b *Backend) Cancel(ctx context.Context, handles [][]byte) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	for g, idx := range b.bySite(handles) {
		wg.Go(func() {
			if err := b.cancelAt(ctx, g, idx, handles); err != nil {
				mu.Lock()
				defer mu.Unlock()
				if first == nil {
					first = errs.Wrap(errs.Unknown, err, "ending a node on %s", g.site.Name)
				}
			}
		})
	}
	wg.Wait()
	return first
}

func (b *Backend) cancelAt(ctx context.Context, g group, idx []int, handles [][]byte) error {
	var hs [][]byte
	for _, i := range idx {
		r, _ := parseHandle(handles[i])
		if kept, ok, err := b.read(r.Cluster, r.Token); err != nil || !ok || kept.End == nil {
			hs = append(hs, r.Handle)
		}
	}
	if len(hs) == 0 {
		return nil
	}
	c, err := b.link(g.site, "").get(ctx, true)
	if err == nil {
		err = c.Cancel(ctx, g.id, hs)
	}
	if err != nil {
		return err
	}
	out := make([]backends.Status, len(handles))
	b.statusOf(ctx, g, idx, handles, out) // writes the ends down
	return nil
}

// Watch tells of ends as the hosts do, and of every host that was away and is back.
func (b *Backend) Watch(ctx context.Context, handles [][]byte, changed chan<- int) error {
	var wg sync.WaitGroup
	for g, idx := range b.bySite(handles) {
		var hs [][]byte
		for _, i := range idx {
			r, _ := parseHandle(handles[i])
			hs = append(hs, r.Handle)
		}
		tell := func(k int) bool {
			select {
			case changed <- idx[k]:
				return true
			case <-ctx.Done():
				return false
			}
		}
		wg.Go(func() { b.watchHost(ctx, g, hs, tell) })
	}
	wg.Wait()
	return nil
}

func (b *Backend) watchHost(ctx context.Context, g group, hs [][]byte, tell func(int) bool) {
	l := b.link(g.site, "")
	for away := false; ctx.Err() == nil; away = true {
		c, err := l.get(ctx, false)
		if err != nil {
			pause(ctx, l.rest())
			continue
		}
		for k := range hs {
			if away && !tell(k) {
				return
			}
		}
		if err := c.Watch(ctx, g.id, hs, tell); err == nil {
			return
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(max(d, 50*time.Millisecond))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// DryRun writes what each host would be sent.
func (b *Backend) DryRun(r backends.Request, w io.Writer) error {
	s, err := b.site(r)
	if err != nil {
		return err
	}
	p := b.provision(s, r.Binary)
	fmt.Fprintf(w, "# node %s: ssh %s\n%s\n", r.Nodes[0], s.describe(), shell)
	fmt.Fprintf(w, "# on its standard input, MARKER a random word, then these lines, provision.sh, and main:\n%s", p.header("MARKER"))
	for _, a := range arches {
		if bin, err := p.shelf.get(a); err == nil {
			fmt.Fprintf(w, "# where it is not there yet, for %s: %s, %s, packed\n", a, bin.path, wire.Bytes(bin.size))
		}
	}
	fmt.Fprintf(w, "# then, to `launcher host` there, a request for node %s of cluster %s in its life %d (msgpack, with the one-use join key, never in a file)\n",
		r.Nodes[0], r.Cluster, r.Epochs[0])
	return nil
}

func (b *Backend) provision(s site, binary string) *provision {
	b.mu.Lock()
	defer b.mu.Unlock()
	sh := b.shelves[binary]
	if sh == nil {
		sh = newShelf(binary, b.home)
		b.shelves[binary] = sh
	}
	who := sha256.Sum256([]byte(filepath.Clean(b.home)))
	return &provision{host: s.Name, dir: s.Directory, who: hex.EncodeToString(who[:4]), shelf: sh, spreads: b.spread, patience: b.patience}
}

// spread is who gives the binary with a sum to whom.
func (b *Backend) spread(sum string) *spread {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.spreads[sum]
	if s == nil {
		s = newSpread(b.slow)
		b.spreads[sum] = s
	}
	return s
}
