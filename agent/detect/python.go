package detect

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"launcher/internal/errs"
)

// Python is an interpreter.
type Python struct {
	Path                string // absolute, as it calls itself
	Major, Minor, Micro int
}

// OldestPython is the first version that the SDK runs on.
const (
	oldestMajor = 3
	oldestMinor = 9
)

// String is the form of wire.Hello.Python: path and version.
func (p Python) String() string {
	return fmt.Sprintf("%s %d.%d.%d", p.Path, p.Major, p.Minor, p.Micro)
}

// FindPython asks an interpreter who it is. path is a file or a name to be looked for;
// "" is the python3 of env's PATH. None, one that does not answer, or one that is too
// old is an error that says so: such a node takes commands only.
func FindPython(ctx context.Context, path string, env []string) (p Python, err error) {
	if path == "" {
		path = "python3"
	}
	if !strings.Contains(path, "/") {
		if path, err = lookIn(env, path); err != nil {
			return p, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "-c", "import sys; print('launcher', *sys.version_info[:3], sys.executable)")
	cmd.Env = env
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		if x, ok := err.(*exec.ExitError); ok && len(x.Stderr) > 0 {
			last := strings.TrimSpace(string(x.Stderr))
			return p, errs.New(errs.NotFound, "python %s does not run: %s", path, last[strings.LastIndexByte(last, '\n')+1:])
		}
		return p, errs.Wrap(errs.NotFound, err, "python %s does not run", path).Hint("set python in the pool to an interpreter that the node has")
	}
	// A sitecustomize may print before us.
	text := string(out)
	if i := strings.LastIndex(text, "launcher "); i >= 0 {
		text = text[i:]
	}
	if n, err := fmt.Sscanf(text, "launcher %d %d %d", &p.Major, &p.Minor, &p.Micro); n != 3 || err != nil {
		return p, errs.New(errs.Invalid, "%s does not answer like python: %.80q", path, text)
	}
	if f := strings.SplitN(strings.TrimSpace(text), " ", 5); len(f) == 5 && filepath.IsAbs(f[4]) {
		p.Path = f[4]
	} else {
		p.Path = path
	}
	if p.Major < oldestMajor || p.Major == oldestMajor && p.Minor < oldestMinor {
		return p, errs.New(errs.Version, "python %s is too old: launcher needs %d.%d", p, oldestMajor, oldestMinor).
			Hint("set python in the pool to a newer one; commands run on this node all the same")
	}
	return p, nil
}

// lookIn finds a program in the PATH of env, as the programs that get env will.
func lookIn(env []string, name string) (string, error) {
	path := "/usr/local/bin:/usr/bin:/bin"
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			continue
		}
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", errs.New(errs.NotFound, "no %s in PATH", name).Hint("set python in the pool, or load it in its setup lines; commands run on this node all the same")
}
