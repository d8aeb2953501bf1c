package vm

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// vmTimeout ends a VM that hangs. A boot takes about 20 s of one otherwise idle core without KVM.
const vmTimeout = 5 * time.Minute

// VM boots a suite in QEMU, runs a script there (bash -eu) as a unit after multi-user.target, powers off, and gives what came of it. Files and directories
// of the host, by their path in the VM, are there before the script begins, and the built binaries are installed. A VM that doesn't get as far as to run the
// script fails the test, with the end of its serial log.
func VM(t testing.TB, suite Suite, script string, files map[string]string) Result {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the VM's image is made from a Debian root: it needs root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), vmTimeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	started := time.Now()
	status, err := RunVM(ctx, suite, script, files, VMStreams{Stdout: &stdout, Stderr: &stderr, Log: os.Stderr})
	if err != nil {
		t.Fatalf("%s: %v\nstandard output:\n%s\nstandard error:\n%s", suite, err, stdout.String(), stderr.String())
	}
	return Result{Stdout: stdout.String(), Stderr: stderr.String(), Status: status, Duration: time.Since(started)}
}

// VMStreams is where a VM's output goes.
type VMStreams struct {
	Stdout, Stderr io.Writer // the script's
	Serial         io.Writer // the kernel's and systemd's; its end is in the error too; nil: nowhere else
	Log            io.Writer // progress of what has to be built first
}

var vmFiles = []string{"vm/image.sh", "vm/lab-vm", "vm/lab-vm.service", "vm/lab-vm.target"}

func vmName(suite Suite) (string, error) {
	root, err := rootName(suite)
	if err != nil {
		return "", err
	}
	key, err := recipeKey(vmFiles, "vm", root)
	return fmt.Sprintf("vm-%s-%s", suite, key), err
}

// vmImage is the directory of a suite's kernel (vmlinuz) and disk (root.img), built first if the cache has none.
func vmImage(suite Suite, log io.Writer) (string, error) {
	root, err := Root(suite, log)
	if err != nil {
		return "", err
	}
	name, err := vmName(suite)
	if err != nil {
		return "", err
	}
	return cached(name, log, func(b build) error {
		dir := filepath.Join(b.scratch, "files")
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		for _, name := range vmFiles {
			if _, err := recipeFile(dir, name); err != nil {
				return err
			}
		}
		// Unpacked, not installed: no initrd is needed, since NVMe, ext4 and virtio-serial are built into Debian's cloud kernel.
		kernel := filepath.Join(b.scratch, "kernel")
		if err := b.debootstrap(suite, kernel, []string{"linux-image-cloud-amd64"}, "--variant=extract"); err != nil {
			return err
		}
		return b.run(exec.Command(filepath.Join(dir, "image.sh"), root, kernel, dir, filepath.Join(b.scratch, "overlay"), b.result))
	})
}

// RunVM is VM outside of a test. The error says why there is no status.
func RunVM(ctx context.Context, suite Suite, script string, files map[string]string, streams VMStreams) (status int, err error) {
	image, err := vmImage(suite, streams.Log)
	if err != nil {
		return 0, err
	}
	input, err := vmInput(script, files)
	if err != nil {
		return 0, fmt.Errorf("packing the VM's files: %w", err)
	}
	defer input.Close()

	id := make([]byte, 16)
	rand.Read(id)
	accelerator := []string{"-accel", "tcg,thread=single", "-smp", "1", "-cpu", "max"}
	if os.Getenv("NSPAWND_VM_KVM") != "" {
		accelerator = []string{"-accel", "kvm", "-smp", "2", "-cpu", "host"}
	}
	args := append(accelerator,
		"-m", "1536", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", filepath.Join(image, "vmlinuz"),
		"-append", strings.Join([]string{
			"root=/dev/nvme0n1", "rw", "console=ttyS0", "panic=-1", "quiet", "mitigations=off",
			"systemd.unit=lab-vm.target", "systemd.show_status=auto", "systemd.hostname=vm-" + string(suite),
			"systemd.machine_id=" + hex.EncodeToString(id),
		}, " "),
		// What the VM writes goes to a file without a name, so any number of them run from one image.
		"-drive", "if=none,id=root,format=raw,snapshot=on,file="+filepath.Join(image, "root.img"),
		"-device", "nvme,serial=root,drive=root",
		"-drive", "if=none,id=input,format=raw,readonly=on,file=/dev/fdset/1",
		"-device", "virtio-blk-pci,drive=input",
		"-device", "virtio-serial-pci", "-add-fd", "set=1,fd=3",
	)
	var serial, statusPort bytes.Buffer
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64")
	cmd.ExtraFiles = []*os.File{input}
	cmd.Stdout, cmd.Stderr = &serial, &serial
	if streams.Serial != nil {
		cmd.Stdout = io.MultiWriter(&serial, streams.Serial)
		cmd.Stderr = cmd.Stdout
	}
	var copying sync.WaitGroup
	defer copying.Wait()
	for i, port := range []struct {
		name string
		to   io.Writer
	}{{"stdout", streams.Stdout}, {"stderr", streams.Stderr}, {"status", &statusPort}} {
		reading, writing, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		defer writing.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, writing)
		set := strconv.Itoa(i + 2)
		args = append(args,
			"-add-fd", "set="+set+",fd="+strconv.Itoa(i+4),
			"-chardev", "file,id="+port.name+",append=on,path=/dev/fdset/"+set, // without append it would truncate the pipe
			"-device", "virtserialport,chardev="+port.name+",name=lab."+port.name)
		copying.Go(func() {
			io.Copy(port.to, reading)
			reading.Close()
		})
	}
	cmd.Args = append(cmd.Args, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Kill() }

	if err := startAndWait(cmd); err != nil {
		return 0, fmt.Errorf("QEMU: %w\n%s", errors.Join(err, context.Cause(ctx)), tail(serial.String(), 60))
	}
	for _, writing := range cmd.ExtraFiles[1:] {
		writing.Close()
	}
	copying.Wait()
	status, err = strconv.Atoi(strings.TrimSpace(statusPort.String()))
	if err != nil {
		return 0, fmt.Errorf("the VM powered off before the script had ended\n%s", tail(serial.String(), 60))
	}
	return status, nil
}

// startAndWait runs a command that is killed when this process is: Pdeathsig means the thread that started it, which is therefore kept.
func startAndWait(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

// vmInput is a tar archive in memory: the script, the built binaries and the files.
func vmInput(script string, files map[string]string) (*os.File, error) {
	fd, err := unix.MemfdCreate("input", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	memory := os.NewFile(uintptr(fd), "input")
	defer memory.Close()
	archive := tar.NewWriter(memory)
	if err := archive.WriteHeader(&tar.Header{Name: "run/lab/script", Mode: 0o755, Size: int64(len(script))}); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(archive, script); err != nil {
		return nil, err
	}
	all := installed()
	maps.Copy(all, files)
	for _, path := range slices.Sorted(maps.Keys(all)) {
		if err := addTree(archive, all[path], strings.TrimPrefix(path, "/")); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	// QEMU takes a descriptor only in the mode that it would have opened the file in.
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// addTree adds a file of the host, or a directory and all that is in it, under another name.
func addTree(archive *tar.Writer, source, name string) error {
	source, err := filepath.EvalSymlinks(source)
	if err != nil {
		return err
	}
	return filepath.WalkDir(source, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		var target string
		if entry.Type() == fs.ModeSymlink {
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		header, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		header.Name = filepath.Join(name, relative)
		header.Uid, header.Gid, header.Uname, header.Gname = 0, 0, "", ""
		if err := archive.WriteHeader(header); err != nil || !entry.Type().IsRegular() {
			return err
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		_, err = io.Copy(archive, file)
		return err
	})
}
