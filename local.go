package launcher

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"launcher/internal/errs"
	"launcher/internal/sockpath"
)

// findAgent gives the socket of the agent to talk to, and what to do when the program
// ends.
func findAgent(ctx context.Context) (at string, stop func(), err error) {
	if at := os.Getenv("LAUNCHER_SOCKET"); at != "" {
		return at, func() {}, nil
	}
	found, err := clustersUp()
	if err != nil {
		return "", nil, err
	}
	switch want := os.Getenv("LAUNCHER_CLUSTER"); {
	case want != "":
		if at, ok := found[want]; ok {
			return at, func() {}, nil
		}
		return "", nil, errs.New(errs.NotFound, "the cluster %s (LAUNCHER_CLUSTER) has no node on this machine that is up", want).
			Hint("launcher up, or run the program in it: launcher run -c %s -- %s", want, os.Args[0])
	case len(found) == 1:
		for _, at := range found {
			return at, func() {}, nil
		}
	case len(found) > 1:
		var names []string
		for name := range found {
			names = append(names, name)
		}
		slices.Sort(names)
		return "", nil, errs.New(errs.Invalid, "several clusters are up: %s", strings.Join(names, ", ")).
			Hint("set LAUNCHER_CLUSTER to one of them")
	}
	return startLocal(ctx)
}

// clustersUp finds the clusters that have a node on this machine, and a socket of each.
func clustersUp() (map[string]string, error) {
	home := os.Getenv("LAUNCHER_HOME")
	if home == "" {
		dir, err := os.UserHomeDir()
		if err != nil {
			return nil, errs.Wrap(errs.NotFound, err, "no home directory").Hint("set LAUNCHER_HOME")
		}
		home = filepath.Join(dir, ".launcher")
	}
	nodes, _ := filepath.Glob(filepath.Join(home, "clusters", "*", "nodes", "*"))
	up := map[string]string{}
	for _, node := range nodes {
		name := filepath.Base(filepath.Dir(filepath.Dir(node)))
		if up[name] != "" || strings.HasPrefix(name, ".") {
			continue
		}
		if at := filepath.Join(node, "agent.sock"); sockpath.Answers(at) {
			up[name] = at
		}
	}
	return up, nil
}

// startLocal starts a cluster on this machine that ends with this process: its keeper
// ends it at the end of its standard input.
func startLocal(ctx context.Context) (at string, stop func(), err error) {
	binary := os.Getenv("LAUNCHER")
	if binary == "" {
		if binary, err = exec.LookPath("launcher"); err != nil {
			return "", nil, errs.Wrap(errs.NotFound, err, "no cluster is up, and there is no launcher to start one").
				Hint("put launcher on PATH, or set LAUNCHER to where it is, or launcher up SPEC")
		}
	}
	cmd := exec.Command(binary, "local")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = apart()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return "", nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, errs.Wrap(errs.Unavailable, err, "cannot start a local cluster")
	}
	stop = func() {
		stdin.Close()
		_ = cmd.Wait()
	}
	said := make(chan error, 1)
	var a struct {
		Socket  string `json:"socket"`
		Cluster string `json:"cluster"`
	}
	go func() {
		line, err := bufio.NewReader(stdout).ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(line, &a)
		}
		said <- err
	}()
	select {
	case err = <-said:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		stop()
		return "", nil, errs.Wrap(errs.Unavailable, err, "the local cluster did not start")
	}
	return a.Socket, stop, nil
}
