package dial

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"launcher/internal/errs"
)

// maxSocketPath is what a control socket's path may have: ssh adds some characters of its
// own while it makes it.
const maxSocketPath = 85

// leash runs the master as long as it lives and our end of its standard input is open, so
// that a master never outlives us, however we end.
const leash = `"$@" 3<&- </dev/null & p=$!; { cat; kill $p; } <&3 >/dev/null 2>&1 & wait $p`

// sysLink is a connection that the machine's own ssh holds: a control master, whose
// sessions are started by further ssh processes through its socket.
type sysLink struct {
	s     *settings
	ssh   string
	path  string // of the control socket
	cmd   *exec.Cmd
	leash io.Closer
	said  tail
	ended chan struct{}
	once  sync.Once
	why   error
}

// runDir is a private directory with a short path.
func (d *Dialer) runDir() (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dir != "" {
		return d.dir, nil
	}
	dir, err := os.MkdirTemp(d.o.RunDir, "ls")
	if err != nil && d.o.RunDir == "" {
		dir, err = os.MkdirTemp("/tmp", "ls")
	}
	if err != nil {
		return "", errs.Wrap(errs.Unavailable, err, "a directory for control sockets")
	}
	if len(dir) > maxSocketPath-16 {
		_ = os.Remove(dir)
		if dir, err = os.MkdirTemp("/tmp", "ls"); err != nil {
			return "", errs.Wrap(errs.Unavailable, err, "a directory for control sockets")
		}
	}
	d.dir = dir
	return dir, nil
}

func random() string {
	b := make([]byte, 4)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// masterConfig is the master's ssh_config: what the Target says, then the files that hold
// otherwise. It is a file because only that is passed on to the ssh of a jump host.
func (d *Dialer) masterConfig(s *settings) string {
	var b strings.Builder
	say := func(key, value string) { fmt.Fprintln(&b, key, value) }
	path := func(p string) string { return `"` + strings.ReplaceAll(tilde(p), "%", "%%") + `"` }
	seconds := func(t time.Duration) string { return strconv.Itoa(max(1, int(t.Round(time.Second)/time.Second))) }
	say("ServerAliveInterval", seconds(d.o.KeepAlive))
	say("ServerAliveCountMax", strconv.Itoa(d.o.KeepAliveCount))
	say("ConnectTimeout", seconds(s.timeout))
	if !s.sitting.Terminal {
		say("BatchMode", "yes")
	}
	if s.strict == "accept-new" || s.strict == "no" { // with no, ssh would go on where a key has changed
		say("StrictHostKeyChecking", "accept-new")
	}
	if s.t.Identity != "" {
		say("IdentityFile", path(s.t.Identity))
	}
	if s.t.KnownHosts != "" {
		say("UserKnownHostsFile", path(s.t.KnownHosts))
		say("GlobalKnownHostsFile", os.DevNull)
	}
	switch s.t.Config {
	case "none":
	case "":
		say("Include", path("~/.ssh/config"))
		say("Include", "/etc/ssh/ssh_config")
	default:
		say("Include", strings.ReplaceAll(path(s.t.Config), "%%", "%"))
	}
	return b.String()
}

// masterArgs are ssh's for the master.
func masterArgs(s *settings, control, config string) []string {
	a := []string{"-M", "-N", "-T", "-S", control, "-F", config, "-o", "ControlPersist=no", "-o", "ClearAllForwardings=yes", "-o", "ForwardAgent=no", "-o", "ForwardX11=no",
		"-o", "PermitLocalCommand=yes", "-o", "LocalCommand=echo ready"}
	if s.t.User != "" {
		a = append(a, "-l", s.t.User)
	}
	if s.t.Port != 0 {
		a = append(a, "-p", strconv.Itoa(s.t.Port))
	}
	if s.t.Jump != "" {
		a = append(a, "-J", s.t.Jump)
	}
	return append(a, "--", s.alias)
}

// system makes a connection by the machine's own ssh.
func (d *Dialer) system(ctx context.Context, s *settings) (link, error) {
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		return nil, fail(BadConfig, s.alias, nil, `%s: transport = "system" needs the ssh command, and there is none here`, s.alias).Hint("install OpenSSH's client")
	}
	dir, err := d.runDir()
	if err != nil {
		return nil, err
	}
	l := &sysLink{s: s, ssh: ssh, path: filepath.Join(dir, random()), ended: make(chan struct{})}
	config := l.path + ".conf"
	if err := os.WriteFile(config, []byte(d.masterConfig(s)), 0o600); err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "%s: ssh's configuration", s.alias)
	}
	defer func() { _ = os.Remove(config) }() // jump hosts have read it too when the master is there
	l.cmd = exec.Command("/bin/sh", append([]string{"-c", "exec 3<&0; " + leash, "sh", ssh}, masterArgs(s, l.path, config)...)...)
	l.cmd.SysProcAttr = ownGroup()
	l.cmd.Stderr = &l.said
	l.cmd.WaitDelay = time.Second
	if l.cmd.Env, err = d.askEnv(s); err != nil {
		return nil, err
	}
	in, err1 := l.cmd.StdinPipe()
	out, err2 := l.cmd.StdoutPipe()
	if err := errors.Join(err1, err2, l.cmd.Start()); err != nil {
		return nil, fail(BadConfig, s.alias, err, "%s: ssh does not start", s.alias)
	}
	l.leash = in
	ready := make(chan struct{})
	go func() {
		r := bufio.NewReader(out)
		for {
			line, err := r.ReadString('\n')
			if strings.TrimSpace(line) == "ready" {
				close(ready)
				break
			}
			if err != nil {
				break
			}
		}
		_, _ = io.Copy(io.Discard, r)
		_ = l.cmd.Wait()
		l.end(fail(LinkDead, s.alias, nil, "%s: the connection broke: %s", s.alias, printable(oneLine(l.said.String()))))
	}()
	bound := context.Background()
	if !s.sitting.Terminal { // nobody is waited for
		var cancel context.CancelFunc
		bound, cancel = context.WithTimeout(bound, 3*s.timeout)
		defer cancel()
	}
	select {
	case <-ready:
		return l, nil
	case <-ctx.Done():
		l.close()
		return nil, errs.Wrap(errs.Unknown, context.Cause(ctx), "connecting to %s", s.alias)
	case <-bound.Done():
		l.close()
		return nil, fail(Silent, s.alias, nil, "%s: ssh is not there after %s", s.alias, 3*s.timeout)
	case <-l.ended:
		return nil, sayWhy(s, l.said.String())
	}
}

// lives asks the master whether it is there.
func (l *sysLink) lives() bool {
	ctx, cancel := context.WithTimeout(context.Background(), l.s.timeout)
	defer cancel()
	return exec.CommandContext(ctx, l.ssh, "-F", "none", "-S", l.path, "-O", "check", "x").Run() == nil
}

func (l *sysLink) done() <-chan struct{} { return l.ended }
func (l *sysLink) err() error            { return l.why }
func (l *sysLink) close()                { l.end(errClosed(l.s.alias)) }

func (l *sysLink) end(err error) {
	l.once.Do(func() {
		l.why = err
		close(l.ended)
		_ = l.leash.Close()
		killGroup(l.cmd.Process.Pid)
		_ = os.Remove(l.path)
	})
}

// start starts an ssh that asks the master for a session, and reads in its log whether it
// got one.
func (l *sysLink) start(ctx context.Context, what string, subsystem bool) (*process, error) {
	log := l.path + "." + random()
	fifo, err := openFifo(log)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "session on %s", l.s.alias)
	}
	defer func() { _ = os.Remove(log) }()
	// Without a master it must not connect by itself: ProxyCommand is false then.
	args := []string{"-F", "none", "-S", l.path, "-T", "-v", "-E", log, "-o", "ControlMaster=no", "-o", "ProxyCommand=false", "-o", "BatchMode=yes"}
	if subsystem {
		args = append(args, "-s")
	}
	c := exec.Command(l.ssh, append(args, "x", "--", what)...)
	c.SysProcAttr = ownGroup()
	in, err1 := c.StdinPipe()
	out, err2 := c.StdoutPipe()
	errOut, err3 := c.StderrPipe()
	if err := errors.Join(err1, err2, err3, c.Start()); err != nil {
		_ = fifo.Close()
		return nil, errs.Wrap(errs.Unavailable, err, "session on %s", l.s.alias)
	}
	kill := func() { killGroup(c.Process.Pid) }
	opened := make(chan error, 1)
	go func() {
		r := bufio.NewScanner(fifo)
		for r.Scan() {
			switch line := r.Text(); {
			case strings.Contains(line, "master session id:"):
				opened <- nil
				_, _ = io.Copy(io.Discard, fifo)
				return
			case strings.Contains(line, "refused by peer"), strings.Contains(line, "session request failed"):
				opened <- errNoRoom
				return
			case strings.Contains(line, "Executing proxy command"), strings.Contains(line, "Control socket"):
				opened <- fail(LinkDead, l.s.alias, nil, "%s: the connection broke", l.s.alias)
				return
			}
		}
	}()
	giveUp := func(err error) (*process, error) {
		kill()
		_ = c.Wait()
		_ = fifo.Close()
		return nil, err
	}
	select {
	case err := <-opened:
		if err != nil {
			return giveUp(err)
		}
	case <-ctx.Done():
		return giveUp(errs.Wrap(errs.Unknown, context.Cause(ctx), "session on %s", l.s.alias))
	case <-l.ended:
		return giveUp(l.why)
	}
	return &process{in: in, out: out, err: errOut, kill: kill, wait: func() (Exit, error) {
		err := c.Wait()
		_ = fifo.Close()
		if c.ProcessState == nil {
			return Exit{}, err
		}
		code := c.ProcessState.ExitCode()
		if code == 255 && !l.lives() { // else it is the command's own
			select {
			case <-l.ended:
			case <-time.After(time.Second): // it would know better words
				l.end(fail(LinkDead, l.s.alias, nil, "%s: the connection broke", l.s.alias))
			}
			return Exit{}, l.why
		}
		if code < 0 {
			return Exit{}, errors.New("ssh was killed")
		}
		return Exit{Code: code}, nil
	}}, nil
}

// sayings are what ssh says of each Reason; the first that is found holds.
var sayings = []struct {
	text string
	r    Reason
}{
	{"REMOTE HOST IDENTIFICATION HAS CHANGED", ChangedKey},
	{"is marked as revoked", ChangedKey},
	{"key is known for", UnknownKey},
	{"Host key verification failed", UnknownKey},
	{"stdio forwarding failed", NoForward},
	{"administratively prohibited", NoForward},
	{"Permission denied (", Denied},
	{"Too many authentication failures", Denied},
	{"Could not resolve hostname", Unresolved},
	{"Connection refused", Refused},
	{"timed out", Silent},
	{"No route to host", Unreachable},
	{"Network is unreachable", Unreachable},
	{"Bad configuration option", BadConfig},
	{"kex_exchange_identification", Dropped},
	{"Connection closed by", Dropped},
	{"Connection reset by", Dropped},
}

var offending = regexp.MustCompile(`Offending \S+ key in (.+:[0-9]+)`)

// sayWhy finds the Reason in what ssh said, the only place where it tells failures apart.
func sayWhy(s *settings, said string) error {
	for _, x := range sayings {
		if !strings.Contains(said, x.text) {
			continue
		}
		if x.r == ChangedKey {
			where := "known_hosts"
			if m := offending.FindStringSubmatch(said); m != nil {
				where = m[1]
			}
			return fail(ChangedKey, s.alias, nil, "%s: its key is not the one in %s", s.alias, strings.TrimSpace(where)).
				Hint("if the host was set up anew, remove the old key with ssh-keygen -R; if not, somebody else may be answering in its place")
		}
		var line string
		for l := range strings.Lines(said) {
			if strings.Contains(l, x.text) {
				line = strings.TrimSpace(l)
			}
		}
		return fail(x.r, s.alias, nil, "%s: ssh says: %s", s.alias, printable(line))
	}
	return fail(Unreachable, s.alias, nil, "%s: ssh failed: %s", s.alias, printable(oneLine(said)))
}

// withEnv is an environment with some variables set.
func withEnv(set map[string]string) []string {
	var out []string
	for _, kv := range os.Environ() {
		k, _, _ := strings.Cut(kv, "=")
		if _, ours := set[k]; !ours {
			out = append(out, kv)
		}
	}
	for k, v := range set {
		out = append(out, k+"="+v)
	}
	return out
}
