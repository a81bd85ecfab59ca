// Package slurmtest runs a real Slurm on this machine for tests: munged, slurmctld and a
// slurmd for each node, all on loopback, as the user who runs the test. Jobs run as that
// user too. Nothing is left when it has been stopped, or when its starter was killed.
package slurmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Options says what the cluster is like: two nodes, n1 and n2, with two cores each.
type Options struct {
	Dir    string // of everything it has; made and removed. Default: a new one
	Nodes  int
	CPUs   int      // of each node, whatever the machine has
	Sizes  []int    // the same, of the first nodes
	GPUs   int      // of each node: up to four, which are only device files
	Lines  []string // more of slurm.conf; a key that is there already takes this value
	Hide   []string // directories that jobs do not see: nodes have none of them
	Cgroup []string // lines of cgroup.conf; nodes then track and confine by control groups, version 1, which needs root
	Parts  []string // partitions beside the default one, main: PartitionName=... Nodes=...

	// Lines for sacctmgr, in which USER is who runs the test: limits and accounts are then kept
	// and enforced, by a slurmdbd over a database of the cluster's own. All is on this machine.
	Accounts []string

	// Where each daemon has a machine of its own, which sees Dir: that of the controller and
	// of clients, and the nodes'. Without them all are here, on loopback.
	Login *Machine
	On    []Machine
}

// Machine is one that a daemon runs on.
type Machine struct {
	Name  string // as it calls itself
	IP    string
	Enter []string // command that runs others there
}

// Cluster is a running Slurm.
type Cluster struct {
	Dir  string
	Conf string // for SLURM_CONF
	name string
	o    Options
	all  map[string]*daemon
}

// daemon is one process of it, tied to us by a pipe.
type daemon struct {
	name  string
	argv  []string
	cmd   *exec.Cmd
	leash io.Closer
	done  chan struct{}
	log   string
}

// leashed ends its command when its standard input is at its end, as it is when the
// starter has been killed. The first line of its output is the command's number.
const leashed = `exec 3<&0; "$@" 3<&- </dev/null >/dev/null & p=$!; echo $p; { cat; kill -9 $p; } <&3 >/dev/null 2>&1 & wait $p`

// programs are what must be there, and where Debian has it when PATH does not say.
var programs = []string{"munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "sinfo", "scontrol"}

func find(name string) string {
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	if p := "/usr/sbin/" + name; exec.Command(p, "-V").Run() == nil {
		return p
	}
	return ""
}

// Missing names a program that is not there; "" = all are.
func Missing() string {
	for _, p := range programs {
		if find(p) == "" {
			return p
		}
	}
	return ""
}

// Start starts a cluster and waits until all its nodes are idle.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if p := Missing(); p != "" {
		return nil, fmt.Errorf("no %s (make setup as root on Debian)", p)
	}
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	if o.CPUs == 0 {
		o.CPUs = 2
	}
	if o.Login != nil {
		o.Nodes = len(o.On)
	}
	var err error
	if o.Dir == "" {
		o.Dir, err = os.MkdirTemp("/dev/shm", "sl") // short: sockets lie below; in memory: nobody waits for the disk
	} else {
		err = os.MkdirAll(o.Dir, 0o755)
	}
	if err != nil {
		return nil, err
	}
	// Ports are chosen before they are used: somebody may be faster.
	for try := 0; ; try++ {
		c := &Cluster{Dir: o.Dir, Conf: filepath.Join(o.Dir, "slurm.conf"), o: o, all: map[string]*daemon{}}
		if err = c.start(ctx); err == nil {
			return c, nil
		}
		c.Stop()
		if try == 2 || ctx.Err() != nil || o.Login != nil {
			return nil, err
		}
		if err := os.MkdirAll(o.Dir, 0o755); err != nil {
			return nil, err
		}
	}
}

func (c *Cluster) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if err := c.configure(); err != nil {
		return err
	}
	at := func(f string) string { return filepath.Join(c.Dir, f) }
	if c.o.Login != nil { // for users other than us
		if err := os.Chmod(c.Dir, 0o755); err != nil {
			return err
		}
	}
	key := make([]byte, 128)
	_, _ = rand.Read(key) // never fails
	if err := os.WriteFile(at("munge.key"), key, 0o400); err != nil {
		return err
	}
	if err := c.daemon("munged", find("munged"), "--force", "--foreground", "--key-file="+at("munge.key"), "--socket="+at("munge.sock"),
		"--pid-file="+at("munged.pid"), "--log-file="+at("munged.log"), "--seed-file="+at("munged.seed")); err != nil {
		return err
	}
	if err := c.await(ctx, "munged listens", func() bool { _, err := os.Stat(at("munge.sock")); return err == nil }); err != nil {
		return err
	}
	if c.o.Accounts != nil {
		if err := c.accounts(ctx); err != nil {
			return err
		}
	}
	if err := c.daemon("slurmctld", append(c.login(), find("slurmctld"), "-D", "-f", c.Conf)...); err != nil {
		return err
	}
	for i, n := range c.Nodes() {
		if err := os.MkdirAll(at("spool/"+n), 0o755); err != nil {
			return err
		}
		argv := c.hiding(find("slurmd"), "-D", "-N", n, "-f", c.Conf)
		if c.o.Login != nil {
			argv = append(slices.Clone(c.o.On[i].Enter), argv...)
		}
		if err := c.daemon(n, argv...); err != nil {
			return err
		}
	}
	return c.await(ctx, "all nodes are idle", func() bool {
		out, err := c.Run(ctx, "sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D")
		return err == nil && strings.TrimSpace(out) == strconv.Itoa(c.o.Nodes)
	})
}

// hidden mounts an empty directory over each of its arguments up to --, in namespaces of
// its own, and runs the rest as the user who asked.
const hidden = `u=$1 g=$2; shift 2; while [ "$1" != -- ]; do mount -t tmpfs none "$1" || exit 1; shift; done; shift; exec unshare -U --map-user="$u" --map-group="$g" "$@"`

func (c *Cluster) hiding(argv ...string) []string {
	if len(c.o.Hide) == 0 {
		return argv
	}
	out := []string{"unshare", "-Urm", "sh", "-c", hidden, "sh", strconv.Itoa(os.Getuid()), strconv.Itoa(os.Getgid())}
	return append(append(append(out, c.o.Hide...), "--"), argv...)
}

// Nodes are their names.
func (c *Cluster) Nodes() (names []string) {
	for i := range c.o.Nodes {
		if c.o.Login != nil {
			names = append(names, c.o.On[i].Name)
		} else {
			names = append(names, "n"+strconv.Itoa(i+1))
		}
	}
	return names
}

func (c *Cluster) login() []string {
	if c.o.Login == nil {
		return nil
	}
	return slices.Clone(c.o.Login.Enter)
}

// configure writes slurm.conf and what lies beside it.
func (c *Cluster) configure() error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	host, _, _ = strings.Cut(host, ".")
	ports, err := freePorts(2 + c.o.Nodes)
	if err != nil {
		return err
	}
	id := make([]byte, 6) // other clusters on this machine have jobs of the same numbers
	_, _ = rand.Read(id)  // never fails
	c.name = "test" + hex.EncodeToString(id)
	user, control := strconv.Itoa(os.Getuid()), "127.0.0.1"
	nodes := make([]Machine, c.o.Nodes)
	for i := range nodes {
		nodes[i] = Machine{Name: host, IP: "127.0.0.1"}
	}
	if c.o.Login != nil {
		control, nodes = c.o.Login.IP, c.o.On
		for i := range ports {
			ports[i] = "6818"
		}
		ports[0] = "6817"
	}
	lines := []string{
		"ClusterName=" + c.name, "SlurmctldHost=" + host + "(" + control + ")", "SlurmctldPort=" + ports[0],
		"SlurmUser=" + user, "SlurmdUser=" + user, "AuthType=auth/munge", "AuthInfo=socket=" + c.Dir + "/munge.sock", "CredType=cred/munge",
		"StateSaveLocation=" + c.Dir + "/state", "SlurmdSpoolDir=" + c.Dir + "/spool/%n",
		"SlurmctldPidFile=" + c.Dir + "/slurmctld.pid", "SlurmdPidFile=" + c.Dir + "/%n.pid",
		"SlurmctldLogFile=" + c.Dir + "/slurmctld.log", "SlurmdLogFile=" + c.Dir + "/%n.log",
		"ProctrackType=proctrack/linuxproc", "TaskPlugin=task/none", "JobAcctGatherType=jobacct_gather/none",
		"SelectType=select/cons_tres", "SelectTypeParameters=CR_Core",
		"SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0",
		"SlurmdParameters=config_overrides", "ReturnToService=2", "MpiDefault=none", "MailProg=/bin/true",
		"KillWait=5", "MinJobAge=300", "InactiveLimit=0", "SlurmctldTimeout=10", "SlurmdTimeout=10", "UnkillableStepTimeout=20",
		"AccountingStorageType=accounting_storage/none",
	}
	if c.o.Login == nil {
		lines = append(lines, "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny")
	}
	if c.o.GPUs > 0 {
		lines = append(lines, "GresTypes=gpu")
	}
	if c.o.Cgroup != nil {
		c.o.Lines = append([]string{"ProctrackType=proctrack/cgroup", "TaskPlugin=task/affinity,task/cgroup"}, c.o.Lines...)
	}
	more, dbd := c.o.Lines, ""
	if c.o.Accounts != nil {
		var kept []string
		if kept, dbd, err = c.accountLines(host, ports[1+c.o.Nodes]); err != nil {
			return err
		}
		more = append(kept, more...)
	}
	for _, l := range more {
		k, _, _ := strings.Cut(l, "=")
		for i := range lines {
			if strings.HasPrefix(lines[i], k+"=") {
				lines = append(lines[:i], lines[i+1:]...)
				break
			}
		}
		lines = append(lines, l)
	}
	gres := ""
	if c.o.GPUs > 0 {
		gres = fmt.Sprintf(" Gres=gpu:%d", c.o.GPUs)
	}
	for i, n := range c.Nodes() {
		cpus := c.o.CPUs
		if i < len(c.o.Sizes) {
			cpus = c.o.Sizes[i]
		}
		lines = append(lines, fmt.Sprintf("NodeName=%s NodeHostname=%s NodeAddr=%s Port=%s CPUs=%d RealMemory=4000%s State=UNKNOWN", n, nodes[i].Name, nodes[i].IP, ports[i+1], cpus, gres))
	}
	lines = append(lines, "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
	lines = append(lines, c.o.Parts...)
	files := map[string]string{
		"slurm.conf":  strings.Join(lines, "\n") + "\n",
		"cgroup.conf": strings.Join(append([]string{"CgroupPlugin=cgroup/v1"}, c.o.Cgroup...), "\n") + "\n",
	}
	if c.o.GPUs > 0 {
		devices := []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random"}
		if c.o.Cgroup != nil { // those that are kept from jobs must be nobody else's
			for i := range devices {
				devices[i] = filepath.Join(c.Dir, "gpu"+strconv.Itoa(i))
				if err := syscall.Mknod(devices[i], syscall.S_IFCHR|0o666, unusedMajor<<8|i); err != nil {
					return err
				}
				if err := os.Chmod(devices[i], 0o666); err != nil {
					return err
				}
			}
		}
		files["gres.conf"] = "Name=gpu File=" + strings.Join(devices[:min(c.o.GPUs, len(devices))], ",") + "\n"
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(c.Dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if dbd != "" {
		if err := os.WriteFile(filepath.Join(c.Dir, "slurmdbd.conf"), []byte(dbd), 0o600); err != nil {
			return err
		}
	}
	return os.MkdirAll(filepath.Join(c.Dir, "state"), 0o755)
}

// unusedMajor is of devices that no driver has: to open one that may be opened fails by ENXIO.
const unusedMajor = 240

func freePorts(n int) (ports []string, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // all at once, so that none is given twice
		ports = append(ports, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	}
	return ports, nil
}

// daemon starts one process of the cluster, again if there was one of that name.
func (c *Cluster) daemon(name string, argv ...string) error {
	d := &daemon{name: name, argv: argv, done: make(chan struct{}), log: filepath.Join(c.Dir, name+".err")}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	d.cmd = exec.Command("/bin/sh", append([]string{"-c", leashed, "sh"}, argv...)...)
	d.cmd.Env = append(clean(os.Environ()), "SLURM_CONF="+c.Conf, c.mark(), daemonMark+name)
	d.cmd.Dir, d.cmd.Stderr = c.Dir, log
	pid, err := os.Create(filepath.Join(c.Dir, name+".number"))
	if err != nil {
		return err
	}
	defer pid.Close()
	d.cmd.Stdout = pid
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if d.leash, err = d.cmd.StdinPipe(); err != nil {
		return err
	}
	if err := d.cmd.Start(); err != nil {
		return err
	}
	go func() { _ = d.cmd.Wait(); close(d.done) }()
	c.all[name] = d
	return nil
}

// clean is an environment without what an enclosing Slurm set.
func clean(env []string) (out []string) {
	for _, kv := range env {
		if !strings.HasPrefix(kv, "SLURM") && !strings.HasPrefix(kv, "SBATCH_") && !strings.HasPrefix(kv, "SRUN_") {
			out = append(out, kv)
		}
	}
	return out
}

// mark finds what the cluster's daemons have started among all processes.
func (c *Cluster) mark() string { return "LAUNCHER_TEST_SLURM=" + c.Dir }

func (c *Cluster) await(ctx context.Context, what string, ok func() bool) error {
	for {
		if ok() {
			return nil
		}
		for _, d := range c.all {
			select {
			case <-d.done:
				text, _ := os.ReadFile(d.log)
				return fmt.Errorf("%s ended: %s", d.name, bytes.TrimSpace(text))
			default:
			}
		}
		select {
		case <-ctx.Done():
			said := ""
			logs, _ := filepath.Glob(filepath.Join(c.Dir, "*.log"))
			for _, l := range logs {
				text, _ := os.ReadFile(l)
				said += "\n" + filepath.Base(l) + ": " + string(text[max(0, len(text)-1000):])
			}
			return fmt.Errorf("Slurm: not so within its time: %s%s", what, said)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Env is what its clients need in their environment.
func (c *Cluster) Env() []string { return []string{"SLURM_CONF=" + c.Conf} }

// Command prepares a client command.
func (c *Cluster) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	line := append(append(c.login(), find(name)), args...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = append(clean(os.Environ()), c.Env()...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Run runs a client command and gives what it printed.
func (c *Cluster) Run(ctx context.Context, name string, args ...string) (string, error) {
	var out, errb bytes.Buffer
	cmd := c.Command(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errb
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(errb.Bytes()))
	}
	return out.String(), nil
}

// daemonMark finds a daemon that was started by way of a command that enters its machine.
const daemonMark = "LAUNCHER_TEST_DAEMON="

// number is the process of a daemon.
func (c *Cluster) number(name string) int {
	if c.o.Login != nil {
		for _, pid := range c.Left() {
			env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
			exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
			if bytes.Contains(env, []byte(daemonMark+name+"\x00")) && (strings.HasSuffix(exe, "/slurmd") || strings.HasSuffix(exe, "/"+name)) {
				return pid
			}
		}
		return 0
	}
	b, _ := os.ReadFile(filepath.Join(c.Dir, name+".number"))
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

// Signal sends a daemon a signal: slurmctld, or that of a node.
func (c *Cluster) Signal(name string, sig syscall.Signal) error {
	n := c.number(name)
	if n == 0 {
		return errors.New("there is no " + name)
	}
	return syscall.Kill(n, sig)
}

// End ends a daemon in order: a controller writes down what it knows.
func (c *Cluster) End(name string) {
	d := c.all[name]
	_ = c.Signal(name, syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(20 * time.Second):
		_ = c.Signal(name, syscall.SIGKILL)
	}
	_ = d.leash.Close()
	<-d.done
}

// Restart starts a daemon that has ended.
func (c *Cluster) Restart(name string) error { return c.daemon(name, c.all[name].argv...) }

// Stop ends all jobs, then everything of the cluster.
func (c *Cluster) Stop() {
	if d := c.all["slurmctld"]; d != nil {
		select {
		case <-d.done:
		default:
			c.endJobs()
		}
	}
	for _, d := range c.all {
		_ = d.leash.Close()
	}
	for _, d := range c.all {
		<-d.done
	}
	for range 100 { // what they start in the meantime is found by the next look
		pids := c.Left()
		if len(pids) == 0 {
			break
		}
		for _, p := range pids {
			_ = syscall.Kill(p, syscall.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if c.o.Cgroup != nil { // a slurmd that was killed leaves its own
		for _, n := range c.Nodes() {
			dirs, _ := filepath.Glob("/sys/fs/cgroup/*/slurm_" + n)
			var below []string
			for _, d := range dirs {
				_ = filepath.WalkDir(d, func(p string, e fs.DirEntry, err error) error {
					if err == nil && e.IsDir() {
						below = append(below, p)
					}
					return nil
				})
			}
			for _, d := range slices.Backward(below) { // the deepest first
				_ = syscall.Rmdir(d)
			}
		}
	}
	_ = os.RemoveAll(c.Dir)
}

// endJobs cancels what runs and waits, for a while, until the nodes are done with it.
func (c *Cluster) endJobs() {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	out, err := c.Run(ctx, "squeue", "-h", "-o", "%A")
	if err != nil || strings.TrimSpace(out) == "" {
		return
	}
	_, _ = c.Run(ctx, "scancel", strings.Fields(out)...)
	for ctx.Err() == nil {
		if out, err = c.Run(ctx, "squeue", "-h", "-o", "%A"); err != nil || strings.TrimSpace(out) == "" {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Left gives the processes of the cluster and of its jobs.
func (c *Cluster) Left() (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		env, err2 := os.ReadFile(d + "/environ")
		if err != nil || err2 != nil || pid == os.Getpid() {
			continue
		}
		if env = append(env, 0); bytes.Contains(env, []byte(c.mark()+"\x00")) || bytes.Contains(env, []byte("SLURM_CONF="+c.Conf+"\x00")) && bytes.Contains(env, []byte("SLURM_JOB_ID=")) {
			pids = append(pids, pid)
		}
	}
	return pids
}
