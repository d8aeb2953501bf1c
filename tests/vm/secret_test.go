package vm

import "testing"

func TestSecrets(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		m.Must("nspawnd-run", tiny, "true")
		m.Must("machinectl-lite", "pull-oci", redis)
		m.WriteFile("/etc/credstore/db", []byte("pass word\x00\xff"), 0o600)
		m.WriteFile("/run/credstore/token", []byte("t0ken"), 0o600)
		m.WriteFile("/srv/other", []byte("from a file"), 0o600)
		m.Must("mkdir", "-p", "/etc/credstore.encrypted")
		encrypted := m.Run("systemd-creds", "encrypt", "--with-key=host", "--name=sealed", "/srv/other", "/etc/credstore.encrypted/sealed")
		if encrypted.Status != 0 {
			t.Fatal(encrypted.Stderr)
		}
		m.expect(t,
			outcome{"nspawnd-run --secret db " + tiny + " cat /run/secrets/db", 0, "pass word\x00\xff", ""},
			outcome{shell("--secret token", "cat $CREDENTIALS_DIRECTORY/token /run/secrets/token; findmnt -no FSTYPE /run/secrets; stat -c \"%a %u %g\" /run/secrets/token /run/secrets"), 0, "t0kent0kentmpfs\n444 0 0\n755 0 0\n", ""},
			outcome{"nspawnd-run -u 1234:5 --entrypoint sh --secret token,uid=1234,gid=5,mode=0400,target=mine " + redis + " -c 'cat /run/secrets/mine; stat -c \"%a %u %g\" /run/secrets/mine'", 0, "t0ken400 1234 5\n", ""},
			outcome{"nspawnd-run -u 1234:5 --secret token,mode=0400 " + tiny + " cat /run/secrets/token", 1, "", "/permission denied/"},
			outcome{"nspawnd-run -u 1234 --secret token,type=env,target=TOKEN --secret other,src=/srv/other " + tiny + " env", 0, "/\nTOKEN=t0ken\n/", ""},
			outcome{"nspawnd-run --secret sealed " + tiny + " cat /run/secrets/sealed", 0, "from a file", ""},
			outcome{"nspawnd-run -u 0 -p LoadCredential=own:/srv/other --entrypoint sh " + redis + " -c 'cat $CREDENTIALS_DIRECTORY/own'", 0, "from a file", ""},
			outcome{"nspawnd-run -u 7 --cap-drop all --secret token,uid=7,mode=0400 " + tiny + " cat /run/secrets/token", 0, "t0ken", ""},
			outcome{"nspawnd-run --cap-drop all --secret token -e odd.name=1 " + tiny + " cat /run/secrets/token", 0, "t0ken", ""},
			// It is not in what everybody may read of a unit, and on no disk.
			outcome{"nspawnd-run -d --name quiet --secret token,type=env --secret db " + tiny + " trap; said quiet ready; systemctl show nspawnd-quiet | grep -c t0ken; tr '\\0' ' ' < /proc/$(systemctl show -P MainPID nspawnd-quiet)/cmdline | grep -c t0ken;" +
				"grep -rc 't0ken\\|pass word' /var/lib/nspawnd/machines; systemctl stop nspawnd-quiet; find /run/credentials -name 'nspawnd-*'", 0, "/^quiet\n0\n0\n/", ""},
			outcome{"nspawnd-run --secret nosuch " + tiny + " true", 125, "", "/^nspawnd-run: --secret: there is no nosuch in /etc/credstore, .*src=FILE.*\n$/"},
			outcome{"nspawnd-run --secret x,src=/no/such " + tiny + " true", 125, "", "/^nspawnd-run: --secret: stat /no/such: .*\n$/"},
			outcome{"nspawnd-run --secret db --secret db " + tiny + " true", 125, "", "/^nspawnd-run: --secret: db is named twice\n$/"},
			outcome{"nspawnd-run --secret db,target=/etc/x " + tiny + " true", 125, "", "/^nspawnd-run: --secret: .*--volume\n$/"},
		)
		m.nothingLeft(t)
	})
}
