package slurm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

// reaching is a node's gate that is kept in reach; guarded by the backend's mu.
type reaching struct {
	at  way
	err error // why it is not reached; nil: it is, or nobody knows yet
	was bool  // a connection stood
}

const wayDial = 3 * time.Second

// ways keeps in reach what nodes of a running job do not reach the head by themselves, and
// says which of them are not.
func (b *Backend) ways(r record, files []string) string {
	var why []string
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range files {
		k := b.reached[f]
		if k == nil {
			k = &reaching{}
			if b.life.Err() != nil || readWay(f, &k.at) != nil {
				continue
			}
			b.reached[f] = k
			b.carries.Go(func() { b.reach(f, k) })
		}
		if !k.was || k.err != nil {
			why = append(why, k.lacks())
		}
	}
	slices.Sort(why)
	if more := len(why) - 3; more > 0 {
		why = append(why[:3], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(why, "; ")
}

// lacks says what is missing.
func (k *reaching) lacks() string {
	s := fmt.Sprintf("node %s on %s does not reach the head by TCP (%s)", k.at.Node, k.at.Host, k.at.Why)
	if k.err == nil {
		return s + ": it is being reached from " + ownHost()
	}
	return fmt.Sprintf("%s, nor does %s reach the node (%v): one of them must be able to connect to the other, by [network] ports = \"LO-HI\" if only some ports are open; or start the work inside an allocation, by sbatch", s, ownHost(), k.err)
}

func readWay(path string, w *way) error {
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, w)
	}
	return err
}

// reach keeps one unused connection at a gate until its file is gone.
func (b *Backend) reach(file string, k *reaching) {
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.reached, file)
	}()
	cluster := filepath.Base(filepath.Dir(filepath.Dir(file)))
	pause := time.Second
	for b.life.Err() == nil {
		var w way
		if err := readWay(file, &w); errors.Is(err, os.ErrNotExist) {
			return
		} else if err != nil {
			w = k.at
		}
		c, err := w.connect(b.life)
		b.mu.Lock()
		k.at, k.err, k.was = w, err, k.was || err == nil
		b.mu.Unlock()
		if err == nil {
			began := time.Now()
			if b.wanted(c) {
				pause = time.Second
				b.carries.Go(func() { b.toHead(c, cluster) })
				continue
			}
			_ = c.Close()
			if time.Since(began) > pause {
				pause = time.Second
			}
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-b.life.Done():
			t.Stop()
		}
		pause = min(2*pause, 30*time.Second)
	}
}

// connect makes a connection to the gate, at the first of its addresses that answers.
func (w *way) connect(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, wayDial)
	defer cancel()
	type result struct {
		c   net.Conn
		err error
	}
	results := make(chan result)
	for _, a := range w.Addrs {
		go func() {
			c, err := dialGate(ctx, a, w.Secret)
			select {
			case results <- result{c, err}:
			case <-ctx.Done():
				if c != nil {
					_ = c.Close()
				}
			}
		}()
	}
	var last error
	for range w.Addrs {
		select {
		case r := <-results:
			if r.err == nil {
				return r.c, nil
			}
			last = r.err
		case <-ctx.Done():
			return nil, errs.New(errs.Timeout, "no answer at %s", strings.Join(w.Addrs, ", "))
		}
	}
	return nil, last
}

func dialGate(ctx context.Context, addr string, secret []byte) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(proofBound))
	nonce := make([]byte, 32)
	if _, err = io.ReadFull(c, nonce); err == nil {
		_, err = c.Write(proof(secret, nonce))
	}
	if err != nil {
		_ = c.Close()
		return nil, errs.Wrap(errs.Unavailable, err, "greeting %s", addr)
	}
	_ = c.SetDeadline(time.Time{})
	alive(c)
	return c, nil
}

// wanted waits until the node uses the connection; false = that has ended.
func (b *Backend) wanted(c net.Conn) bool {
	stop := context.AfterFunc(b.life, func() { _ = c.Close() })
	defer stop()
	n, err := c.Read(make([]byte, 1))
	return err == nil && n == 1
}

// toHead connects a node's connection with the head, wherever that is now.
func (b *Backend) toHead(c net.Conn, cluster string) {
	defer c.Close()
	var at wire.ClusterFile
	data, err := os.ReadFile(filepath.Join(b.home, "clusters", cluster, "cluster.json"))
	if err != nil || json.Unmarshal(data, &at) != nil {
		return // the node asks again
	}
	ctx, cancel := context.WithTimeout(b.life, proofBound)
	defer cancel()
	for _, a := range at.Addrs {
		var d net.Dialer
		if h, err := d.DialContext(ctx, "tcp", a); err == nil {
			splice(b.life, c, h)
			return
		}
	}
}

// gateFiles are the files of gates, by directory and job's name: one look at a directory is
// for all jobs there.
type gateFiles map[string]map[string][]string

// of are the files of a job's gates.
func (g gateFiles) of(r record) []string {
	if g[r.Dir] == nil {
		g[r.Dir] = map[string][]string{}
		entries, _ := os.ReadDir(r.Dir)
		for _, e := range entries {
			i := strings.LastIndex(e.Name(), wayExt)
			if i < 0 {
				continue
			}
			job, task := e.Name()[:i], e.Name()[i+len(wayExt):]
			if _, err := strconv.Atoi(task); err == nil { // not one that is being written
				g[r.Dir][job] = append(g[r.Dir][job], filepath.Join(r.Dir, e.Name()))
			}
		}
	}
	return g[r.Dir][r.Name]
}

// forgetWays removes what nodes that were killed have left.
func (r record) forgetWays() {
	for _, f := range (gateFiles{}).of(r) {
		_ = os.Remove(f)
	}
}
