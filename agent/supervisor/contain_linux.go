package supervisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"strings"
	"time"

	"launcher/agent/container"
	"launcher/internal/errs"
	"launcher/wire"
)

// contain is the supervisor's command inside the container of the node's pool. The guard
// stays outside: it takes what a runtime leaves as it takes what a supervisor leaves.
func (g *guard) contain(cfg wire.NodeConfig, env, argv []string) (inside, outer []string, err error) {
	if argv[0] == "/proc/self/exe" {
		return nil, nil, errs.New(errs.Unavailable, "this program's file was replaced: it cannot be started in a container")
	}
	m := container.Look("/", cfg.Dir, cfg.CacheDir, argv[0], os.Getenv("TMPDIR"), os.Getenv("HOME"), cfg.Spill)
	h := sha256.Sum256([]byte(g.mark))
	c, err := m.In(cfg.Container, "launcher-"+hex.EncodeToString(h[:6]), cfg.Dir, env, 2, argv...)
	if err != nil {
		return nil, nil, err
	}
	g.inside, g.contained = true, c.Remove
	return c.Argv, c.Env, nil
}

// remove removes what the container's runtime may have left: it is told to by name.
func (g *guard) remove() {
	if g.contained == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, g.contained[0], g.contained[1:]...)
	cmd.WaitDelay = time.Second
	_ = cmd.Run()
}

// lastLine is the end of a log, as far as it says something.
func lastLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	const most = 300
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	l := lines[len(lines)-1]
	return strings.ToValidUTF8(l[max(0, len(l)-most):], "?")
}
