package testkit

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Net is a network of pretend hosts, which are namespaces of this machine, and of a
// laptop: the test's Home, which is on the network and nowhere else. Links of it can be
// cut, healed and made bad. It needs root.
type Net struct {
	*Lab
	Laptop *Home
	IP     string // the laptop's
	Port   *Link  // the laptop's
	as     *User
	sw     *space
	laptop *space
	hosts  int
	python []string // lines of a host's set-up that give its python numpy
	masks  []string // what is hidden from hosts
}

// HostOptions says how a host differs from one that can be reached and reaches all others.
type HostOptions struct {
	Server ServerOptions
	Closed bool     // ssh comes in, and nothing else in or out
	Behind *Host    // the laptop comes to it by way of this one only
	Cable  *Cable   // what it hangs on, nil: a wire
	Shared []string // directories of this machine that are there too, as on a network's file system
	ARM64  bool     // a machine of that architecture, which runs programs of ours, too
}

// Host is a machine of a Net: its own network, name, processes, /tmp, /dev/shm and home,
// and an sshd. The clone, its .venv and the homes of this machine are not there.
type Host struct {
	*Server
	*Link
	net    *Net
	space  *space
	had    map[string]bool
	shared []string
	enter  []string // flags of nsenter, which namespaces are its own
}

// Link is what holds a member on the network.
type Link struct {
	t    testing.TB
	sw   *space // its other end is PORT there
	end  *space // eth0 is there
	port string
	ip   string
}

// space is a process that holds namespaces; when it dies, or the test, they end.
type space struct {
	t     testing.TB
	cmd   *exec.Cmd
	leash io.Closer
	done  chan struct{}
}

// newSpace runs lines in new namespaces, by a shell that then waits for its end and reaps.
func newSpace(t testing.TB, flags uintptr, lines ...string) *space {
	t.Helper()
	script := "set -e\n" + strings.Join(lines, "\n") + "\necho ready\nexec >/dev/null\nread -r end || :\n"
	s := &space{t: t, cmd: exec.CommandContext(context.Background(), "/bin/bash", "-c", script), done: make(chan struct{})}
	var log Buffer
	s.cmd.Stderr = &log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Setsid: true}
	if flags&syscall.CLONE_NEWUSER != 0 { // everybody is who they are
		same := []syscall.SysProcIDMap{{Size: 1 << 16}}
		s.cmd.SysProcAttr.UidMappings, s.cmd.SysProcAttr.GidMappings, s.cmd.SysProcAttr.GidMappingsEnableSetgroups = same, same, true
	}
	s.cmd.WaitDelay = time.Second
	out, err := s.cmd.StdoutPipe()
	if err == nil {
		s.leash, err = s.cmd.StdinPipe()
	}
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		t.Skipf("SKIP: no namespaces here: %v", err)
	}
	t.Cleanup(s.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	go func() { _ = s.cmd.Wait(); close(s.done) }()
	if line != "ready\n" {
		t.Fatalf("a pretend host does not start: %q %v %s", line, err, log.String())
	}
	return s
}

func (s *space) pid() string { return strconv.Itoa(s.cmd.Process.Pid) }

// kill ends all its processes at once.
func (s *space) kill() {
	_ = s.cmd.Process.Kill()
	<-s.done
}

// do runs a command in the space's network.
func (s *space) do(args ...string) {
	s.t.Helper()
	if out, err := s.try(args...); err != nil {
		s.t.Fatalf("%s: %v %s", strings.Join(args, " "), err, out)
	}
}

func (s *space) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Bound)
	defer cancel()
	out, err := exec.CommandContext(ctx, "nsenter", append([]string{"-t", s.pid(), "-n", "--"}, args...)...).CombinedOutput()
	return string(out), err
}

// NewNet makes a network with a laptop on it, or skips the test where that cannot be.
// modules are what the hosts' python has.
func NewNet(t testing.TB, modules ...string) *Net {
	t.Helper()
	u := PlainUser(t, 1)
	for _, p := range []string{"ip", "nft", "tc", "nsenter"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("SKIP: no %s (make setup as root on Debian)", p)
		}
	}
	n := &Net{Lab: SSHD(t), as: u}
	n.look(modules)
	for _, f := range []string{n.Key, n.KnownHosts, n.Config} { // they are the laptop's
		if err := os.Chown(f, u.UID, u.GID); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(n.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	n.sw = newSpace(t, syscall.CLONE_NEWNET, "ip link add br0 type bridge", "ip link set br0 up")
	n.laptop = newSpace(t, syscall.CLONE_NEWNET, "ip link set lo up")
	n.Port = n.plug(n.laptop, nil)
	n.IP = n.Port.ip
	n.Laptop = NewAs(t, u)
	n.Laptop.Enter = []string{"nsenter", "-t", n.laptop.pid(), "-n", "-S", strconv.Itoa(u.UID), "-G", strconv.Itoa(u.GID), "--"}
	return n
}

// look finds what hosts get of this machine, and what they must not see.
func (n *Net) look(modules []string) {
	root, err := os.Getwd()
	for err == nil && root != "/" {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		root = filepath.Dir(root)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	n.masks = []string{root, "/root", "/home", "/tmp", "/var/tmp"}
	if venv, err := filepath.EvalSymlinks(filepath.Join(root, ".venv")); err == nil {
		n.masks = append(n.masks, filepath.Dir(venv))
	}
	if len(modules) == 0 {
		return
	}
	py := Python(n.t, modules...)
	for _, m := range modules {
		at, err := exec.Command(py, "-c", "import "+m+"; print("+m+".__path__[0])").Output()
		site, err2 := exec.Command("/usr/bin/python3", "-c", "import site; print(site.getsitepackages()[0])").Output()
		if err != nil || err2 != nil {
			n.t.Skipf("SKIP: the hosts' python cannot have %s: %v %v", m, err, err2)
		}
		from, to := strings.TrimSpace(string(at)), strings.TrimSpace(string(site))
		if len(n.python) == 0 { // as if pip had installed it for all users
			n.python = append(n.python, "mkdir -p /mnt/python "+to)
		}
		for _, d := range []string{from, from + ".libs"} {
			n.python = append(n.python, fmt.Sprintf("[ ! -d %s ] || { mkdir /mnt/python/%s; mount --bind %s /mnt/python/%[2]s; }", shellWord(d), filepath.Base(d), shellWord(d)))
		}
		if m == modules[len(modules)-1] {
			n.python = append(n.python, "mount --rbind /mnt/python "+to)
		}
	}
}

// plug connects a space to the network.
func (n *Net) plug(s *space, c *Cable) *Link {
	n.t.Helper()
	n.hosts++
	l := &Link{t: n.t, sw: n.sw, end: s, port: "p" + strconv.Itoa(n.hosts), ip: "10.77.0." + strconv.Itoa(n.hosts)}
	if c == nil {
		if out, err := exec.Command("ip", "link", "add", l.port, "netns", n.sw.pid(), "type", "veth", "peer", "name", "eth0", "netns", s.pid()).CombinedOutput(); err != nil {
			n.t.Skipf("SKIP: no network links here: %v %s", err, out)
		}
	} else {
		c.lay(n.t, n.sw, l.port, s, "eth0")
	}
	n.sw.do("ip", "link", "set", l.port, "master", "br0", "up")
	s.do("ip", "addr", "add", l.ip+"/24", "dev", "eth0")
	s.do("ip", "link", "set", "eth0", "up")
	return l
}

// Second gives the laptop and hosts another network beside the first: eth1, with the same
// last number of the address in 10.78.0.0/24.
func (n *Net) Second(hosts ...*Host) {
	n.t.Helper()
	n.SecondOf(hosts...)
	n.second(n.Port)
}

// SecondOf gives it to hosts only.
func (n *Net) SecondOf(hosts ...*Host) {
	n.t.Helper()
	n.sw.do("ip", "link", "add", "br1", "type", "bridge")
	n.sw.do("ip", "link", "set", "br1", "up")
	for _, h := range hosts {
		n.second(h.Link)
	}
}

func (n *Net) second(l *Link) {
	n.t.Helper()
	port := "q" + l.port[1:]
	n.sw.do("ip", "link", "add", port, "type", "veth", "peer", "name", "eth1", "netns", l.end.pid())
	n.sw.do("ip", "link", "set", port, "master", "br1", "up")
	l.end.do("ip", "addr", "add", "10.78.0."+l.port[1:]+"/24", "dev", "eth1")
	l.end.do("ip", "link", "set", "eth1", "up")
}

// Wall lets nothing through between two hosts, from or to an address that each has.
func (n *Net) Wall(a, b *Host, of func(*Host) string) {
	n.t.Helper()
	for from, to := range map[*Host]*Host{a: b, b: a} {
		ip := of(to)
		from.space.do("nft", "table inet wall"+strings.ReplaceAll(ip, ".", "_")+" {\nchain i { type filter hook input priority -2; ip saddr "+ip+" drop; }\nchain o { type filter hook output priority -2; ip daddr "+ip+" drop; }\n}")
	}
}

// Host starts a host.
func (n *Net) Host(name string, o HostOptions) *Host {
	n.t.Helper()
	dir := filepath.Join(n.Dir, name)
	home := "/home/" + n.as.Name
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	lines := []string{"mount --make-rprivate /", "mount -t proc proc /proc", "ip link set lo up", "echo " + name + " >/proc/sys/kernel/hostname"}
	// What the host is given lies below /mnt, away from what is hidden from it.
	lines = append(lines, "mount -t tmpfs -o mode=755 none /mnt", "mkdir /mnt/own", "mount --bind "+shellWord(dir)+" /mnt/own")
	lines = append(lines, fmt.Sprintf("echo 127.0.0.1 localhost >/mnt/hosts; echo 10.77.0.%d %s >>/mnt/hosts; mount --bind /mnt/hosts /etc/hosts", n.hosts+1, name))
	lines = append(lines, account(n.as, "/mnt", home, "")...)
	lines = append(lines, n.python...)
	for i, d := range o.Shared {
		lines = append(lines, fmt.Sprintf("mkdir /mnt/shared%d; mount --bind %s /mnt/shared%[1]d", i, shellWord(d)))
	}
	for _, m := range n.masks {
		lines = append(lines, fmt.Sprintf("[ ! -d %s ] || mount -t tmpfs -o mode=755 none %[1]s", shellWord(m)))
	}
	lines = append(lines, "chmod 1777 /tmp /var/tmp", "mount -t tmpfs -o mode=1777 none /dev/shm", "mount -t tmpfs -o mode=755 none /run", "mkdir /run/sshd",
		"mkdir -p "+shellWord(dir), "mount --bind /mnt/own "+shellWord(dir))
	for i, d := range o.Shared {
		lines = append(lines, fmt.Sprintf("mkdir -p %s; mount --bind /mnt/shared%d %[1]s", shellWord(d), i))
	}
	lines = append(lines, "cd /")
	lines = append(lines, o.Server.Inside...)
	h := &Host{net: n, shared: o.Shared, enter: []string{"-n", "-m", "-u", "-i", "-p"}}
	var flags uintptr = syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET
	if o.ARM64 { // what programs can be run is a matter of the user namespace
		lines = append(lines, emulated(n.t)...)
		h.enter, flags = append(h.enter, "-U"), flags|syscall.CLONE_NEWUSER
	}
	h.space = newSpace(n.t, flags, lines...)
	h.Link = n.plug(h.space, o.Cable)
	var rules string
	switch {
	case o.Closed:
		rules = "chain i { type filter hook input priority 0; policy drop; iif lo accept; tcp dport 22 accept; }\nchain o { type filter hook output priority 0; policy drop; oif lo accept; tcp sport 22 accept; }"
	case o.Behind != nil:
		rules = fmt.Sprintf("chain i { type filter hook input priority 0; ip saddr %s tcp flags & (syn | ack) == syn drop; }", n.IP)
		o.Server.Client = append(o.Server.Client, "ProxyJump "+o.Behind.Name)
	}
	if rules != "" {
		h.space.do("nft", "table inet closed {\n"+rules+"\n}")
	}
	o.Server.As, o.Server.Home, o.Server.IP, o.Server.Port = n.as, home, h.ip, 22
	o.Server.Root = "/proc/" + h.space.pid() + "/root"
	o.Server.Enter = h.Enter()
	h.Server = n.Start(name, o.Server)
	h.had = h.files()
	n.t.Cleanup(func() {
		if n.t.Failed() {
			h.dumpLogs()
		}
	})
	return h
}

// Enter is the command that runs others on the host, as root.
func (h *Host) Enter() []string {
	return slices.Concat([]string{"nsenter", "-t", h.space.pid()}, h.enter, []string{"--"})
}

// Enter is the command that runs others on the laptop, as root.
func (n *Net) Enter() []string { return []string{"nsenter", "-t", n.laptop.pid(), "-n", "--"} }

// emulated is lines that have programs for arm64 run by qemu, and uname say so.
func emulated(t testing.TB) []string {
	t.Helper()
	qemu, err := exec.LookPath("qemu-aarch64-static")
	if err != nil {
		t.Skip("SKIP: no qemu-aarch64-static (make setup as root on Debian)")
	}
	if b, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(b), "binfmt_misc") {
		t.Skip("SKIP: the kernel runs no programs of other architectures")
	}
	const magic, mask = `\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00`, `\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff`
	return []string{
		"mount -t binfmt_misc none /proc/sys/fs/binfmt_misc",
		`printf '%s\n' ` + shellWord(":arm64:M::"+magic+":"+mask+":"+qemu+":F") + " >/proc/sys/fs/binfmt_misc/register",
		`printf '#!/bin/sh\n[ "$1" = -m ] && exec echo aarch64\nexec /mnt/uname "$@"\n' >/mnt/saying`,
		"cp /bin/uname /mnt/uname; chmod 755 /mnt/saying; mount --bind /mnt/saying /bin/uname",
	}
}

// Down takes the link away, as when a cable is pulled, and Up brings it back.
func (l *Link) Down() { l.t.Helper(); l.sw.do("ip", "link", "set", l.port, "down") }

// Up ends Down.
func (l *Link) Up() { l.t.Helper(); l.sw.do("ip", "link", "set", l.port, "up") }

// Lose has so many of a hundred packets get lost each way.
func (l *Link) Lose(percent int) {
	l.t.Helper()
	_, _ = l.end.try("nft", "delete", "table", "inet", "bad")
	rule := fmt.Sprintf("oif eth0 numgen random mod 100 < %d drop", percent)
	l.end.do("nft", "table inet bad {\nchain i { type filter hook input priority -1; i"+rule[1:]+"\n}\nchain o { type filter hook output priority -1; "+rule+"\n}\n}")
}

// Rate holds the link to a rate each way, in tc's words.
func (l *Link) Rate(rate string) {
	l.t.Helper()
	l.end.do("tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "32k", "latency", "200ms")
	l.sw.do("tc", "qdisc", "replace", "dev", l.port, "root", "tbf", "rate", rate, "burst", "32k", "latency", "200ms")
}

// Sent is how many bytes the member has sent.
func (l *Link) Sent() int64 {
	l.t.Helper()
	b, err := os.ReadFile("/proc/" + l.end.pid() + "/net/dev")
	if err != nil {
		l.t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(b), "eth0:")
	n := int64(-1)
	if f := strings.Fields(line); len(f) > 8 {
		n, err = strconv.ParseInt(f[8], 10, 64)
	}
	if err != nil || n < 0 {
		l.t.Fatalf("no counts of eth0: %v %s", err, b)
	}
	return n
}

// PowerOff is the silent end of the host: its link goes, then all its processes.
func (h *Host) PowerOff() {
	h.Down()
	h.space.kill()
}

// Kill ends the processes of the host's user whose command line has the word.
func (h *Host) Kill(word string) {
	for _, p := range h.Processes() {
		if strings.Contains(p, word) {
			pid, _, _ := strings.Cut(p, " ")
			n, _ := strconv.Atoi(pid)
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
	}
}

// Processes are those of the host's user, a line each: number (here) and command line.
func (h *Host) Processes() (out []string) {
	own, err := os.Readlink("/proc/" + h.space.pid() + "/ns/pid")
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		fi, err2 := os.Stat(d)
		if ns, err3 := os.Readlink(d + "/ns/pid"); err != nil || err2 != nil || err3 != nil || ns != own || int(fi.Sys().(*syscall.Stat_t).Uid) != h.net.as.UID {
			continue
		}
		args, _ := os.ReadFile(d + "/cmdline")
		line := strings.TrimSpace(strings.ReplaceAll(string(args), "\x00", " "))
		if line != "" && !strings.HasPrefix(line, "sshd") {
			out = append(out, filepath.Base(d)+" "+line)
		}
	}
	return out
}

func isEmpty(dir string) bool {
	all, err := os.ReadDir(dir)
	return err == nil && len(all) == 0
}

// files are those, and empty directories, in the places of the host that its user can
// write to.
func (h *Host) files() map[string]bool {
	out := map[string]bool{}
	for _, top := range []string{"/home", "/tmp", "/var/tmp", "/dev/shm", "/run"} {
		_ = filepath.WalkDir(h.opts.Root+top, func(p string, d fs.DirEntry, err error) error {
			if p = strings.TrimPrefix(p, h.opts.Root); p == h.Dir || slices.Contains(h.shared, p) {
				return fs.SkipDir
			}
			if err == nil && (!d.IsDir() || isEmpty(h.opts.Root+p)) {
				out[p] = true
			}
			return nil
		})
	}
	return out
}

// Left is what the host has that it had not when it was new: processes of its user, files
// and shared memory.
func (h *Host) Left() []string {
	var out []string
	for _, p := range h.Processes() {
		_, line, _ := strings.Cut(p, " ")
		out = append(out, "process "+line)
	}
	for p := range h.files() {
		if !h.had[p] {
			out = append(out, p)
		}
	}
	for _, kind := range []string{"shm", "sem", "msg"} {
		b, _ := os.ReadFile(h.opts.Root + "/proc/sysvipc/" + kind)
		for _, l := range strings.Split(strings.TrimSpace(string(b)), "\n")[1:] {
			out = append(out, kind+" "+l)
		}
	}
	slices.Sort(out)
	return out
}

// Seen is where a path of the host is seen from here.
func (h *Host) Seen(path string) string { return h.opts.Root + path }

// Write makes a file on the host, which its user may read.
func (h *Host) Write(path, text string) {
	h.net.t.Helper()
	if err := os.WriteFile(h.Seen(path), []byte(text), 0o644); err != nil {
		h.net.t.Fatal(err)
	}
}

// Read gives a file of the host, "" when it is not there.
func (h *Host) Read(path string) string {
	b, _ := os.ReadFile(h.opts.Root + path)
	return string(b)
}

func (h *Host) dumpLogs() {
	for p := range h.files() {
		if strings.HasSuffix(p, ".log") {
			b := h.Read(p)
			h.net.t.Logf("%s:%s:\n%s", h.Name, p, b[max(0, len(b)-6000):])
		}
	}
}
