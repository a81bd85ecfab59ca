package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"launcher/internal/errs"
)

const (
	benchHosts = 32
	sshdPath   = "/usr/sbin/sshd"
	linkRate   = 100e6 / 8 // bytes per second of the link over which the binary is copied
)

// farm is a set of real sshds on loopback addresses, each with a home of its own.
type farm struct {
	dir, config string
	port        int
	sshds       []*exec.Cmd
}

func (f *farm) name(i int) string { return fmt.Sprintf("h%02d", i+1) }
func (f *farm) ip(i int) string   { return fmt.Sprintf("127.66.%d.%d", f.port>>8, 1+i) }
func (f *farm) home(i int) string { return filepath.Join(f.dir, f.name(i)) }

func newFarm(ctx context.Context, dir string, n int) (*farm, error) {
	f := &farm{dir: dir, config: filepath.Join(dir, "config"), port: 20000 + rand.N(10000)}
	key, host := filepath.Join(dir, "id"), filepath.Join(dir, "host")
	for _, k := range []string{key, host} {
		if out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", k).CombinedOutput(); err != nil {
			return f, errs.New(errs.NotFound, "ssh-keygen: %v %s", err, out)
		}
	}
	pub, err := os.ReadFile(host + ".pub")
	if err != nil {
		return f, errs.Wrap(errs.Permission, err, "the hosts' key")
	}
	var config, known strings.Builder
	for i := range n {
		fmt.Fprintf(&known, "[%s]:%d %s", f.ip(i), f.port, pub)
		fmt.Fprintf(&config, "Host %s\n HostName %s\n Port %d\n IdentityFile %s\n IdentitiesOnly yes\n UserKnownHostsFile %s\n", f.name(i), f.ip(i), f.port, key, filepath.Join(dir, "known"))
	}
	err = os.WriteFile(f.config, []byte(config.String()), 0o600)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "known"), []byte(known.String()), 0o600)
	}
	for i := 0; err == nil && i < n; i++ {
		err = f.start(i, key, host)
	}
	for i := 0; err == nil && i < n; i++ {
		err = f.await(ctx, i)
	}
	if err != nil {
		return f, errs.Wrap(errs.Unavailable, err, "the benchmark's hosts")
	}
	return f, nil
}

func (f *farm) start(i int, key, host string) error {
	if err := os.MkdirAll(f.home(i), 0o700); err != nil {
		return err
	}
	conf := f.home(i) + ".conf"
	text := fmt.Sprintf("ListenAddress %s\nPort %d\nPidFile none\nHostKey %s\nAuthorizedKeysFile %s.pub\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nUseDNS no\nSetEnv HOME=%s\nSubsystem sftp internal-sftp\n",
		f.ip(i), f.port, host, key, f.home(i))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	c := exec.Command(sshdPath, "-D", "-e", "-f", conf)
	c.SysProcAttr = tied()
	if err := c.Start(); err != nil {
		return err
	}
	f.sshds = append(f.sshds, c)
	return nil
}

// await returns when a host takes connections.
func (f *farm) await(ctx context.Context, i int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(f.ip(i), strconv.Itoa(f.port)))
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (f *farm) close() {
	for _, c := range f.sshds {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
}

// ssh runs `true` on all hosts at once and gives how long that took, in time and CPU.
func (f *farm) ssh(ctx context.Context) (wall, cpu float64, err error) {
	before, began := f.cpu(), time.Now()
	var wg sync.WaitGroup
	all := make([]*exec.Cmd, len(f.sshds))
	fails := make([]error, len(all))
	for i := range all {
		all[i] = exec.CommandContext(ctx, "ssh", "-F", f.config, "-o", "BatchMode=yes", f.name(i), "true")
		wg.Go(func() { fails[i] = all[i].Run() })
	}
	wg.Wait()
	wall = time.Since(began).Seconds()
	for i, c := range all {
		if fails[i] != nil {
			return 0, 0, errs.New(errs.Unavailable, "ssh %s true: %v", f.name(i), fails[i])
		}
		cpu += (c.ProcessState.UserTime() + c.ProcessState.SystemTime()).Seconds()
	}
	return wall, cpu + f.cpu() - before, nil
}

// cpu is what the sshds and all that runs on the hosts have used so far.
func (f *farm) cpu() float64 {
	var roots []int
	for _, c := range f.sshds {
		roots = append(roots, c.Process.Pid)
	}
	return cpuOf("="+filepath.Dir(f.dir), roots)
}

// spec is one for n of the hosts by the names of an ssh_config, with the head there.
func (f *farm) spec(n int, config, head string) string {
	var names []string
	for i := range n {
		names = append(names, strconv.Quote(f.name(i)))
	}
	return fmt.Sprintf("version = 1\nname = \"bench\"\n[head]\nwhere = %q\n[[pool]]\nname = \"box\"\nbackend = \"ssh\"\nmin = %d\nhosts = [%s]\nssh_config = %q\nresources = { cpu = 1, memory = \"64MiB\" }\n",
		head, n, strings.Join(names, ", "), config)
}

// bring brings a cluster of such hosts up and down again, and gives the time to its being up
// and the CPU of everything that ran until then.
func (f *farm) bring(ctx context.Context, e *benchEnv, n int) (wall, cpu float64, err error) {
	before, began := f.cpu(), time.Now()
	c := e.command(ctx, "up", e.spec)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Run(); err != nil {
		return 0, 0, errs.New(errs.Unavailable, "launcher up: %v: %s", err, cut(strings.TrimSpace(out.String()), 500))
	}
	e.up, e.begun = true, true
	if !strings.Contains(out.String(), fmt.Sprintf("is up: %d node", n)) {
		return 0, 0, errs.New(errs.Unavailable, "launcher up: not all hosts are there: %s", cut(strings.TrimSpace(out.String()), 500))
	}
	wall = time.Since(began).Seconds()
	cpu = (c.ProcessState.UserTime() + c.ProcessState.SystemTime()).Seconds() + f.cpu() - before
	if err := e.down(ctx); err != nil {
		return 0, 0, err
	}
	e.begun = false
	_, err = e.launcher(ctx, "forget", "--all")
	return wall, cpu, err
}

// benchSSH sets `up` of hosts over ssh beside a bare `ssh true` to all of them at once, and
// the copy of the binary beside scp's of the same file over the same link.
func benchSSH(ctx context.Context, e *benchEnv, emit func(benchRow)) error {
	for _, p := range []string{sshdPath, "ssh", "scp", "ssh-keygen"} {
		if _, err := exec.LookPath(p); err != nil {
			return errs.New(errs.NotFound, "there is no %s here", p)
		}
	}
	if os.Getuid() == 0 { // a root sshd separates privileges and wants this directory
		_ = os.MkdirAll("/run/sshd", 0o755)
	}
	dir := filepath.Join(e.home, "hosts")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return errs.Wrap(errs.Permission, err, "the benchmark's hosts")
	}
	f, err := newFarm(ctx, dir, benchHosts)
	defer f.close()
	if err != nil {
		return err
	}
	if err := f.copies(ctx, e, emit); err != nil {
		return err
	}
	return f.ups(ctx, e, emit)
}

func (f *farm) ups(ctx context.Context, e *benchEnv, emit func(benchRow)) error {
	const of = "`ssh true` to all at once"
	row := func(what, unit string, v, limit float64, r benchRow) {
		r.Bench, r.What, r.Value, r.Unit, r.Limit, r.Of, r.Ratio = "up-ssh", fmt.Sprintf("%s, %d hosts", what, benchHosts), v, unit, limit, of, v/limit
		emit(r)
	}
	for i, head := range []string{"here", "auto"} {
		if err := os.WriteFile(e.spec, []byte(f.spec(benchHosts, f.config, head)), 0o600); err != nil {
			return errs.Wrap(errs.Permission, err, "the spec")
		}
		if i == 0 { // the binary gets there
			fresh, cpu, err := f.bring(ctx, e, benchHosts)
			if err != nil {
				return err
			}
			emit(benchRow{Bench: "up-ssh", What: fmt.Sprintf("up with the binary's copy, %d hosts (all on this machine)", benchHosts), Value: fresh, Unit: "s"})
			emit(benchRow{Bench: "up-ssh", What: "CPU of it", Value: cpu, Unit: "s"})
		}
		var bare, bareCPU, upCPU []float64
		up, steal, err := e.median(ctx, e.repeats, func() (float64, error) {
			w, c, err := f.ssh(ctx)
			if err != nil {
				return 0, err
			}
			bare, bareCPU = append(bare, w), append(bareCPU, c)
			w, c, err = f.bring(ctx, e, benchHosts)
			upCPU = append(upCPU, c)
			return w, err
		})
		if err != nil {
			return err
		}
		where := map[string]string{"here": "head here", "auto": "head on the first"}[head]
		row("CPU of up, "+where, "s", mid(upCPU), mid(bareCPU), benchRow{})
		row("up, "+where, "s", up, mid(bare), benchRow{Target: 2 * mid(bare), Less: true, Steal: steal})
	}
	return nil
}

// copies measures the copy of the binary to one host, over a link that lets linkRate pass.
func (f *farm) copies(ctx context.Context, e *benchEnv, emit func(benchRow)) error {
	fi, err := os.Stat(e.binary)
	if err != nil {
		return errs.Wrap(errs.Internal, err, "the own binary")
	}
	l, err := shape(net.JoinHostPort(f.ip(0), strconv.Itoa(f.port)), linkRate)
	if err != nil {
		return err
	}
	defer l.Close()
	host, port, _ := net.SplitHostPort(l.Addr().String())
	config := filepath.Join(f.dir, "slow")
	text := fmt.Sprintf("Host %s\n HostName %s\n Port %s\n HostKeyAlias [%s]:%d\n IdentityFile %s\n IdentitiesOnly yes\n UserKnownHostsFile %s\n", f.name(0), host, port, f.ip(0), f.port,
		filepath.Join(f.dir, "id"), filepath.Join(f.dir, "known"))
	err = os.WriteFile(config, []byte(text), 0o600)
	if err == nil {
		err = os.WriteFile(e.spec, []byte(f.spec(1, config, "here")), 0o600)
	}
	if err != nil {
		return errs.Wrap(errs.Permission, err, "the spec")
	}
	run := func(name string, args ...string) (float64, error) {
		began := time.Now()
		if out, err := exec.CommandContext(ctx, name, append([]string{"-F", config, "-o", "BatchMode=yes"}, args...)...).CombinedOutput(); err != nil {
			return 0, errs.New(errs.Unavailable, "%s: %v %s", name, err, out)
		}
		return time.Since(began).Seconds(), nil
	}
	var theirs []float64
	ours, steal, err := e.median(ctx, e.repeats, func() (float64, error) {
		login, err := run("ssh", f.name(0), "true")
		if err != nil {
			return 0, err
		}
		whole, err := run("scp", "-q", e.binary, f.name(0)+":copy")
		if err != nil {
			return 0, err
		}
		theirs = append(theirs, float64(fi.Size())/1e6/(whole-login))
		if err := os.RemoveAll(filepath.Join(f.home(0), ".launcher")); err != nil {
			return 0, errs.Wrap(errs.Permission, err, "the host's home")
		}
		with, _, err := f.bring(ctx, e, 1)
		if err != nil {
			return 0, err
		}
		without, _, err := f.bring(ctx, e, 1)
		return float64(fi.Size()) / 1e6 / (with - without), err
	})
	if err != nil {
		return err
	}
	emit(benchRow{Bench: "up-ssh", What: "the binary's copy, packed, seen and started, at 100 Mbit/s", Value: ours, Unit: "MB/s", Limit: mid(theirs), Of: "scp of the same file", Ratio: ours / mid(theirs), Target: 0.8, Steal: steal})
	return nil
}

// shape listens, and passes connections on to addr, each way of each at a rate in bytes per
// second.
func shape(addr string, rate float64) (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "a slow link")
	}
	go func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", addr)
			if err != nil {
				_ = a.Close()
				continue
			}
			go slowly(b, a, rate)
			go slowly(a, b, rate)
		}
	}()
	return l, nil
}

func slowly(to, from net.Conn, rate float64) {
	defer func() { _ = to.Close() }()
	buf := make([]byte, 16<<10)
	free := time.Now() // when the link can take more
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if now := time.Now(); free.Before(now) {
				free = now
			}
			free = free.Add(time.Duration(float64(n) / rate * 1e9))
			time.Sleep(time.Until(free))
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if err != io.EOF {
				_ = from.Close()
			}
			return
		}
	}
}
