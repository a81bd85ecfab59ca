package slurmtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
)

// accounting are the programs that a cluster with accounts needs beside those of any.
var accounting = []string{"slurmdbd", "mariadbd", "sacctmgr", "sacct"}

// MissingAccounts names what is not there of accounting; "" = all is.
func MissingAccounts() string {
	for _, p := range accounting {
		if find(p) == "" {
			return p
		}
	}
	if systemTables() == "" {
		return "mysql_system_tables.sql"
	}
	if so, _ := filepath.Glob("/usr/lib/*/slurm*/accounting_storage_mysql.so"); len(so) == 0 {
		return "accounting_storage_mysql.so"
	}
	return ""
}

func readable(path string) bool {
	f, err := os.Open(path)
	if err == nil {
		_ = f.Close()
	}
	return err == nil
}

// systemTables is where the statements are that make a database's own tables.
func systemTables() string {
	for _, p := range []string{"/usr/share/mysql", "/usr/share/mariadb"} {
		if p += "/mysql_system_tables.sql"; readable(p) {
			return p
		}
	}
	return ""
}

// accounts starts a database, on a socket in the cluster's directory alone, and slurmdbd
// over it, and carries out the lines for sacctmgr.
func (c *Cluster) accounts(ctx context.Context) error {
	at := func(f string) string { return filepath.Join(c.Dir, f) }
	base := []string{"--no-defaults", "--datadir=" + at("db"), "--tmpdir=" + c.Dir, "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M"}
	tables, err := os.ReadFile(systemTables())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(at("db"), 0o700); err != nil {
		return err
	}
	first := exec.CommandContext(ctx, find("mariadbd"), append(base, "--bootstrap")...)
	first.Dir, first.Stdin = c.Dir, strings.NewReader("CREATE DATABASE mysql;\nUSE mysql;\n"+string(tables))
	if out, err := first.CombinedOutput(); err != nil {
		return fmt.Errorf("mariadbd --bootstrap: %w: %s", err, out)
	}
	if err := c.daemon("mariadbd", append(append([]string{find("mariadbd")}, base...), "--skip-networking", "--skip-grant-tables", "--socket="+at("db.sock"),
		"--pid-file="+at("mariadbd.pid"), "--log-error="+at("mariadbd.log"), "--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900")...); err != nil {
		return err
	}
	if err := c.await(ctx, "mariadbd listens", func() bool { _, err := os.Stat(at("db.sock")); return err == nil }); err != nil {
		return err
	}
	if err := c.daemon("slurmdbd", "env", "MYSQL_UNIX_PORT="+at("db.sock"), find("slurmdbd"), "-D"); err != nil {
		return err
	}
	if err := c.await(ctx, "slurmdbd answers", func() bool { _, err := c.Run(ctx, "sacctmgr", "-n", "show", "cluster"); return err == nil }); err != nil {
		return err
	}
	me, err := user.Current()
	if err != nil {
		return err
	}
	for _, line := range append([]string{"add cluster " + c.name}, c.o.Accounts...) {
		args := strings.Fields(strings.ReplaceAll(line, "USER", me.Username))
		if _, err := c.Run(ctx, "sacctmgr", append([]string{"-i"}, args...)...); err != nil {
			return fmt.Errorf("sacctmgr %s: %w", line, err)
		}
	}
	return nil
}

// accountLines are those of slurm.conf, and slurmdbd.conf.
func (c *Cluster) accountLines(host, port string) (lines []string, dbd string, err error) {
	me, err := user.Current() // slurmdbd takes no number
	if err != nil {
		return nil, "", err
	}
	sock := filepath.Join(c.Dir, "munge.sock")
	return []string{"AccountingStorageType=accounting_storage/slurmdbd", "AccountingStorageHost=127.0.0.1", "AccountingStoragePort=" + port,
			"AccountingStoragePass=" + sock, "AccountingStorageEnforce=associations,limits,qos"},
		strings.Join([]string{"AuthType=auth/munge", "AuthInfo=socket=" + sock, "DbdHost=" + host, "DbdAddr=127.0.0.1", "DbdPort=" + port, "SlurmUser=" + me.Username,
			"StorageType=accounting_storage/mysql", "StorageHost=localhost", "StorageUser=root", "StorageLoc=accounts",
			"LogFile=" + filepath.Join(c.Dir, "slurmdbd.log"), "PidFile=" + filepath.Join(c.Dir, "slurmdbd.pid"), ""}, "\n"), nil
}
