package proc

import (
	"fmt"
	"syscall"

	"launcher/internal/errs"
)

// Step is the part of a start that failed.
type Step string

const (
	StepResolve  Step = "resolve"  // no such program in PATH
	StepExec     Step = "exec"     // the kernel would not run it
	StepChdir    Step = "chdir"    // its directory is not there
	StepAffinity Step = "affinity" // its cores are not there
	StepFork     Step = "fork"     // no more processes, memory or descriptors
	StepLimit    Step = "rlimit"   // a limit could not be set
)

// StartError says why a process could not start.
type StartError struct {
	Step  Step
	Errno syscall.Errno
	Path  string // program or directory
}

func (e *StartError) Error() string {
	switch e.Step {
	case StepResolve:
		return fmt.Sprintf("command %q not found", e.Path)
	case StepChdir:
		return fmt.Sprintf("cannot enter the working directory %s: %v", e.Path, e.Errno)
	case StepExec:
		switch e.Errno {
		case syscall.ENOENT:
			return fmt.Sprintf("cannot run %s: it, or the interpreter that its first line names, does not exist", e.Path)
		case syscall.ENOEXEC:
			return fmt.Sprintf("cannot run %s: neither a program of this kind of machine nor a script with a #! line", e.Path)
		}
		return fmt.Sprintf("cannot run %s: %v", e.Path, e.Errno)
	case StepAffinity:
		return fmt.Sprintf("cannot bind %s to its cores: %v", e.Path, e.Errno)
	}
	return fmt.Sprintf("cannot start %s: %s: %v", e.Path, e.Step, e.Errno)
}

func (e *StartError) Unwrap() error { return e.Errno }

// Code is the exit code that a shell gives for it: 127 not found, 126 not executable,
// -1 for a failure that is not the command's.
func (e *StartError) Code() int32 {
	switch {
	case e.Step == StepResolve, e.Step == StepExec && (e.Errno == syscall.ENOENT || e.Errno == syscall.ENOTDIR):
		return 127
	case e.Step == StepExec && e.Errno != syscall.ENOMEM && e.Errno != syscall.EAGAIN:
		return 126
	}
	return -1
}

// Classified is e as an error for users, with a kind and hints.
func (e *StartError) Classified() *errs.Error {
	k := errs.Unknown
	switch e.Errno {
	case syscall.ENOENT, syscall.ENOTDIR:
		k = errs.NotFound
	case syscall.EACCES, syscall.EPERM:
		k = errs.Permission
	case syscall.ENOEXEC, syscall.E2BIG, syscall.EINVAL, syscall.ELOOP, syscall.ENAMETOOLONG:
		k = errs.Invalid
	case syscall.EAGAIN, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE:
		k = errs.Exhausted
	}
	out := &errs.Error{Kind: k, Msg: e.Error(), Err: nil}
	switch {
	case e.Step == StepResolve:
		out.Hint("is it installed on that node and in its PATH? the pool's setup lines can add to PATH")
	case e.Step == StepChdir:
		out.Hint("give --workdir a directory that the node has")
	case e.Step == StepExec && e.Errno == syscall.ENOENT:
		out.Hint("relative paths start at the working directory; is the file there on that node?")
	case e.Step == StepExec && e.Errno == syscall.EACCES:
		out.Hint("chmod +x %s, or name its interpreter", e.Path)
	case e.Step == StepExec && e.Errno == syscall.ENOEXEC:
		out.Hint("give it a first line such as #!/bin/sh, or name its interpreter")
	case e.Step == StepExec && e.Errno == syscall.E2BIG:
		out.Hint("arguments and environment are too long for the kernel; pass a file instead")
	case e.Step == StepAffinity:
		out.Hint("has the node lost cores since it joined? launcher nodes shows what it has")
	case k == errs.Exhausted:
		out.Hint("the node is out of processes, descriptors or memory: see ulimit -u and ulimit -n there")
	}
	return out
}
