package vm

import "testing"

// TestVirtualMachine is a virtual machine of systemd-vmspawn, which is asked itself: signals would reach the emulator, and be a power cut to what is booted.
func TestVirtualMachine(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		if m.Suite != Forky { // before 261 nobody is to be asked
			t.Skip("its systemd-vmspawn has no control socket")
		}
		m.Emulator()
		startSSH(t, m)
		m.must(`truncate -s 1M /srv/disk
			systemd-run -q --unit=vm -p Type=notify -p NotifyAccess=all -p KillMode=mixed systemd-vmspawn --quiet --keep-unit --register=yes --kvm=no --vsock=no --tpm=no --firmware=bios --efi-nvram-state=off \
				--secure-boot=no --notify-ready=no --pass-ssh-key=no --ram=128M --image=/srv/disk --machine=vm --console=headless`)
		m.must(await + `varlinkctl -j -E call /run/systemd/vmspawn/vm/control io.systemd.MachineInstance.SubscribeEvents {} > /tmp/events 2> /dev/null & await grep -q READY /tmp/events`)
		const told = `told() { grep -v guest-reset /tmp/events | grep -o '"event":"[A-Z]*' | cut -d'"' -f4 | uniq | xargs; }; `
		m.expect(t,
			outcome{`for verb in list "show vm" "status vm"; do diff <(machinectl --no-pager $verb | grep -v ago) <(machinectl-lite --no-pager $verb | grep -v ago); done`, 0, "", ""},
			outcome{told + `for program in machinectl machinectl-lite; do $program pause vm; $program resume vm; systemctl show -P FreezerState vm; $program reboot vm; $program poweroff vm; done
				await sh -c '[ $(grep -c POWERDOWN /tmp/events) = 2 ]'; told; systemctl is-active vm`, 0, "running\nrunning\nREADY STOP RESUME RESET POWERDOWN STOP RESUME RESET POWERDOWN\nactive\n", ""}, // nothing is booted
			outcome{"machinectl-lite pause vm; machinectl-lite list -o wide --no-legend | xargs; machinectl-lite inspect vm | jq -r '.[] | .State, .Class, .Mounts'; machinectl-lite resume vm", 0, "vm vm systemd-vmspawn - - - paused -\npaused\nvm\nnull\n", ""},
			outcome{"machinectl-lite exec vm true", 125, "", "machinectl-lite: vm: it is no container but of class \"vm\": no process of this kernel can be run in it\n"},
			outcome{"setpriv --reuid=65534 --regid=65534 --clear-groups machinectl-lite poweroff vm", 1, "", "/^machinectl-lite: could not stop machine: vm: .*permission denied; try: sudo machinectl-lite …\n$/"},
			outcome{"machinectl-lite -H localhost poweroff vm; machinectl-lite -H localhost list --no-legend | grep -c ^vm", 0, "1\n",
				"machinectl-lite: could not stop machine: vm: systemd-vmspawn, from 261 on, is asked on its own host alone; there: ssh -t localhost machinectl poweroff vm\n"},
			outcome{"machinectl-lite terminate vm nosuch; await sh -c '! systemctl -q is-active vm'; systemctl show -P Result vm", 0, "success\n", "machinectl-lite: could not terminate machine: No machine 'nosuch' known\n"},
		)
	})
}
