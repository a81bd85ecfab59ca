package broker

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/secure"
	"launcher/wire/session"
)

// Files in a cluster's state directory.
const (
	clusterFile = "cluster.json"
	headSocket  = "head.sock"
	linkSocket  = "link.sock"
	linkLock    = "link.lock"
	linkLog     = "link.log"
)

// ReadClusterFile reads clusters/NAME/cluster.json.
func ReadClusterFile(dir string) (wire.ClusterFile, error) {
	var c wire.ClusterFile
	path := filepath.Join(dir, clusterFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, errs.New(errs.NotFound, "cluster %s is not up", filepath.Base(dir)).Hint("`launcher up SPEC` brings one up")
	}
	if err != nil {
		return c, errs.Wrap(errs.Permission, err, "cannot read the state of cluster %s", filepath.Base(dir))
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, errs.Wrap(errs.Corrupt, err, "%s", path).Hint("`launcher up SPEC` writes it anew")
	}
	if c.Version > 1 {
		return c, errs.New(errs.Version, "%s is of launcher %s, which is newer than this one", path, c.Build).
			Hint("use the newer binary")
	}
	return c, nil
}

// Connect reaches the head of the cluster whose state directory is dir, from a command on
// a machine that has that directory: by the head's own socket where it answers, else by
// the link's, starting a link (with this very binary) when there is none.
func Connect(ctx context.Context, dir string) (*session.Session, error) {
	cfg := session.Config{Role: secure.RoleClient, Name: "command"}
	s, err := session.DialUnix(ctx, filepath.Join(dir, headSocket), cfg)
	if err == nil || !nobodyThere(err) {
		return s, err
	}
	link := filepath.Join(dir, linkSocket)
	if s, err = session.DialUnix(ctx, link, cfg); err == nil || !nobodyThere(err) {
		return s, err
	}
	c, err := ReadClusterFile(dir)
	if err != nil {
		return nil, err
	}
	if host, herr := os.Hostname(); herr == nil && host == c.Host {
		return nil, errs.New(errs.Unavailable, "the head of cluster %s does not run (it was process %d on this machine)", c.Name, c.PID).
			Hint("`launcher up %s` brings it back; nothing that it has written down is lost", c.SpecPath)
	}
	binary, err := os.Executable()
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "finding launcher's own binary")
	}
	if link, err = StartLink(ctx, dir, binary); err != nil {
		return nil, err
	}
	return session.DialUnix(ctx, link, cfg)
}

// nobodyThere: no process serves the socket, as against one that refuses.
func nobodyThere(err error) bool {
	return errs.Is(err, errs.NotFound) || errs.Is(err, errs.Unavailable)
}
