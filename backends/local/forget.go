package local

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire"
)

// Place is where the allocation of a handle keeps its records, and its node's name.
func Place(handle []byte) (dir string, node wire.NodeID, ok bool) {
	r, ok := parseHandle(handle)
	return r.Dir, r.Node, ok
}

// NodeDir is the directory of the node of a handle.
func NodeDir(handle []byte) string {
	r, ok := parseHandle(handle)
	if !ok {
		return ""
	}
	return filepath.Join(r.Dir, string(r.Node))
}

// Forget removes what is kept of allocations that have ended, and the directories of their
// nodes where no other life of them is on record. After it their tokens are unknown here.
func (b *Backend) Forget(ctx context.Context, handles [][]byte) error {
	b.starting.Lock() // no life of a node begins meanwhile
	defer b.starting.Unlock()
	for _, h := range handles {
		r, ok := parseHandle(h)
		if !ok {
			continue
		}
		if _, err := os.Stat(r.path(".json")); err != nil {
			if err := r.remove(); err != nil { // what a Forget that was killed has left
				return err
			}
			continue
		}
		if st := b.status(ctx, r); !st.State.Ended() || len(r.marked()) > 0 {
			return errs.New(errs.Unavailable, "%s has not ended yet", r.Node)
		}
		known, err := readRecords(r.Dir)
		if err != nil {
			return err
		}
		other := false
		for _, k := range known {
			other = other || k.Node == r.Node && k.Epoch != r.Epoch
		}
		if !other {
			if err := removeNode(NodeDir(h)); err != nil {
				return err
			}
		}
		if err := r.remove(); err != nil {
			return err
		}
	}
	return nil
}

// remove removes the record and what stands beside it. That goes last: another process may
// make it for as long as the record is there (see forgotten).
func (r record) remove() error {
	for _, ext := range []string{".json", ".end", ".stop"} {
		if err := os.Remove(r.path(ext)); err != nil && !os.IsNotExist(err) {
			return diskError(err, r.path(ext))
		}
	}
	return nil
}

// removeNode removes a node's directory, and its sockets where they are elsewhere.
func removeNode(dir string) error {
	ents, _ := os.ReadDir(dir)
	for _, e := range ents {
		name := strings.TrimSuffix(e.Name(), ".at")
		if strings.HasSuffix(name, ".sock") {
			_ = sockpath.Remove(filepath.Join(dir, name))
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return diskError(err, dir)
	}
	return nil
}
