package vm

import "testing"

// TestSoftware runs software as people do, in images with the habits of those that everybody pulls: entrypoint scripts that exec, declared
// volumes, users, stop signals of their own.
func TestSoftware(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.Registry()
		for _, name := range []string{"nginx", "redis", "python", "postgres", "node", "tiny"} {
			m.Must("machinectl-lite", "trust", "add", "--yes", "--prefix", RegistryAddress+"/demo/"+name, m.SignSigstore(RegistryAddress+"/demo/"+name+":latest"))
		}
		image := func(name string) string { return RegistryAddress + "/demo/" + name }
		stop := func(name string) string {
			return "systemctl stop nspawnd-" + name + " && ! systemctl is-failed --quiet nspawnd-" + name
		}
		cases := func(name string, cases ...outcome) {
			t.Run(name, func(t *testing.T) { m.With(t).expect(t, cases...) })
		}

		cases("nginx",
			outcome{"nspawnd-run -d --name web " + image("nginx"), 0, "web\n", ""},
			outcome{"await curl -sf http://localhost/", 0, "/<h1>demo/nginx</h1>/", ""},
			outcome{stop("web") + "; journalctl -qu nspawnd-web -o cat | grep -c 'gracefully shutting down'", 0, "/^[1-9]/", ""}, // SIGQUIT
		)
		cases("a classic init script",
			outcome{"nspawnd-run -d --name sysv " + image("nginx") + " sh -c '/etc/init.d/nginx start; exec sleep infinity'", 0, "sysv\n", ""},
			outcome{"await curl -sf http://localhost/", 0, "/<h1>demo/nginx</h1>/", ""},
			outcome{"systemctl kill --kill-whom=main --signal=KILL nspawnd-sysv; await sh -c '! curl -s http://localhost/'; systemctl reset-failed nspawnd-sysv", 0, "", ""},
		)
		client := func(words string) string {
			return "nspawnd-run --entrypoint redis-cli " + image("redis") + " " + words
		}
		cases("redis: a user of its own, data on the host",
			outcome{"mkdir -p /srv/redis && chmod 777 /srv/redis && nspawnd-run -d --name cache -v /srv/redis:/data " + image("redis"), 0, "cache\n", ""},
			outcome{"await " + client("ping") + " 2> /dev/null", 0, "/PONG/", ""},
			outcome{client("set key 'a value'") + " && " + client("save"), 0, "OK\nOK\n", ""},
			outcome{stop("cache"), 0, "", ""},
			outcome{"nspawnd-run -d --name cache -v /srv/redis:/data " + image("redis") + " --appendonly no && await " + client("get key") + " 2> /dev/null && " + stop("cache"), 0, "/a value/", ""},
		)
		sql := func(statement string) string {
			return "nspawnd-run --user postgres --entrypoint psql " + image("postgres") + " -h 127.0.0.1 -Atc \"" + statement + "\""
		}
		cases("postgres: initdb as its own user, a restart keeps the data",
			outcome{"mkdir -p /srv/pg && nspawnd-run -d --name db -v /srv/pg:/var/lib/postgresql/data " + image("postgres"), 0, "db\n", ""},
			outcome{"await " + sql("select 1") + " 2> /dev/null", 0, "/1\n$/", ""},
			outcome{sql("create table t (v text); insert into t values ('kept')"), 0, "CREATE TABLE\nINSERT 0 1\n", ""},
			outcome{"systemctl restart nspawnd-db && await " + sql("select v from t") + " 2> /dev/null", 0, "/kept\n$/", ""},
			outcome{stop("db") + " && journalctl -qu nspawnd-db -o cat | grep -c 'received fast shutdown request'", 0, "2\n", ""}, // SIGINT
			outcome{"nspawnd-run -d --name db -v /srv/pg:/var/lib/postgresql/data " + image("postgres") + " && await " + sql("select v from t") + " 2> /dev/null && " + stop("db"), 0, "/kept\n$/", ""},
		)
		cases("python and node",
			outcome{"nspawnd-run -d --name py " + image("python") + " && await curl -sf http://localhost:8000/ && " + stop("py"), 0, "/\\['server.py'\\] 1234:2345 /app hello, 100% \\$HOME/", ""},
			outcome{"nspawnd-run -d --name js " + image("node") + " && await curl -sf http://localhost:3000/x && " + stop("js") + " && journalctl -qu nspawnd-js -o cat | grep closing", 0, "/^js\nv[0-9.]+ /x pid 1\nclosing\n/", ""},
		)
		cases("a static Go program", outcome{"nspawnd-run " + image("tiny") + " hostname", 0, "/./", ""})
		m.nothingLeft(t)
	})
}
