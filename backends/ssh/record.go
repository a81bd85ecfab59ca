package ssh

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"

	"launcher/backends"
	"launcher/backends/records"
	"launcher/internal/errs"
	"launcher/wire"
)

// record is what is known here of one submission.
type record struct {
	V       int         `json:"v"`
	Token   string      `json:"token"`
	Cluster string      `json:"cluster"`
	ID      string      `json:"id"` // of the cluster, on hosts
	Node    wire.NodeID `json:"node"`
	Epoch   wire.Epoch  `json:"epoch"`
	Site    site        `json:"site"`
	Handle  []byte      `json:"handle,omitempty"` // the host's; none: it was asked, and no answer is known

	End *backends.Status `json:"end,omitempty"` // in the file only
}

func (r record) alloc() backends.Alloc {
	r.End = nil
	h, _ := json.Marshal(r)
	return backends.Alloc{Token: r.Token, Handle: h, Nodes: []wire.NodeID{r.Node}}
}

var (
	tokenRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,200}$`)
	nameRE  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._ -]{0,100}$`)
)

// parseHandle reads a handle; anything else is not ours.
func parseHandle(h []byte) (record, bool) {
	var r record
	if json.Unmarshal(h, &r) != nil || r.V != 1 || r.Handle == nil || !tokenRE.MatchString(r.Token) || !nameRE.MatchString(r.Cluster) || r.Site.Host == "" {
		return record{}, false
	}
	r.End = nil
	return r, true
}

func (b *Backend) path(cluster, token string) (string, error) {
	if !tokenRE.MatchString(token) || !nameRE.MatchString(cluster) {
		return "", errs.New(errs.Invalid, "%q of %q cannot name a file", token, cluster)
	}
	return filepath.Join(b.home, "clusters", cluster, "ssh", token+".json"), nil
}

// read reads a submission's file; ok is false when there is none.
func (b *Backend) read(cluster, token string) (r record, ok bool, err error) {
	path, err := b.path(cluster, token)
	if err != nil {
		return r, false, nil // such a token was never used
	}
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return r, false, nil
	case err != nil:
		return r, false, diskError(err, path)
	}
	if err := json.Unmarshal(data, &r); err != nil || r.V != 1 || r.Token != token {
		return r, false, errs.New(errs.Corrupt, "%s is not what was written there", path)
	}
	return r, true, nil
}

// write puts a submission's file in place, whole and on disk.
func (b *Backend) write(r record) error {
	path, err := b.path(r.Cluster, r.Token)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return diskError(err, dir)
	}
	data, _ := json.Marshal(r)
	if err := records.Write(path, append(data, '\n'), true); err != nil {
		return diskError(err, path)
	}
	return nil
}

func (b *Backend) drop(r record) error {
	path, err := b.path(r.Cluster, r.Token)
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return diskError(err, path)
	}
	return nil
}

func diskError(err error, path string) error {
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return errs.Wrap(errs.Permission, err, "the state directory")
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return errs.Wrap(errs.Exhausted, err, "no room in the state directory")
	}
	return errs.Wrap(errs.Internal, err, "%s", path)
}
