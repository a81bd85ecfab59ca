// Package records is what backends share that write down what they were asked for.
package records

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"sync"

	"launcher/internal/errs"
)

// ClusterID names a cluster where others may have one of its name: by the certificate of
// its authority.
func ClusterID(ca []byte) string {
	h := sha256.Sum256(ca)
	return hex.EncodeToString(h[:4])
}

// Write puts a file in place, whole, readable by its owner only. sync: and on disk.
func Write(path string, data []byte, sync bool) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil && sync {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}

// Turns lets one caller after the other work on a token. The zero value is ready for use.
type Turns struct {
	mu     sync.Mutex
	tokens map[string]*turn
}

type turn struct {
	c     chan struct{}
	users int // guarded by Turns.mu
}

// Enter waits for the caller's turn, which ends with leave.
func (ts *Turns) Enter(ctx context.Context, token string) (leave func(), err error) {
	ts.mu.Lock()
	t := ts.tokens[token]
	if t == nil {
		t = &turn{c: make(chan struct{}, 1)}
		if ts.tokens == nil {
			ts.tokens = map[string]*turn{}
		}
		ts.tokens[token] = t
	}
	t.users++
	ts.mu.Unlock()
	drop := func() {
		ts.mu.Lock()
		defer ts.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(ts.tokens, token)
		}
	}
	select {
	case t.c <- struct{}{}:
		return func() { <-t.c; drop() }, nil
	case <-ctx.Done():
		drop()
		return nil, errs.Wrap(errs.Unknown, context.Cause(ctx), "waiting for an earlier call about %s", token)
	}
}
