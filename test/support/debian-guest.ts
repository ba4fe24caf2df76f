// A whole Debian 12 in a lab: boots from a local disk, runs commands for a test on its serial console, at any site.
// Enters: a lab. Leaves: a guest with PostgreSQL under load, checks of its files and tables. Always holds: a
// command's output and exit code come between markers that its echo does not contain; every wait has a deadline that
// fits an emulated processor.
import { execFileSync, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { rm, symlink } from 'node:fs/promises'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import { fileURLToPath } from 'node:url'
import { within } from '../../ops/deadline.ts'
import { requestUpgrade } from '../../ops/http-client.ts'
import { toYaml } from '../../ops/yaml.ts'
import type { VmFacts } from '../../wire/control.ts'
import type { Lab } from './lab.ts'
import { assert } from './suite.ts'

const folder = fileURLToPath(new URL('../../.cache/debian-guest/', import.meta.url))
const IMAGE = 'debian-guest'
const PROMPT = 'godwit-guest# '
const BOOT_MS = 300_000
const RUN_MS = 120_000
/** A line of a terminal has 4096 characters at most. */
const COMMAND_CHARACTERS_MAX = 3000
const KERNEL_FAULTS = 'I/O error|EXT4-fs (error|warning)|JBD2: .*(error|abort)|BUG|Oops|WARNING|blocked for more than|segfault'
const TABLES = 'bench'
const BENCH = '/var/tmp/pgbench'

/** Why no Debian guest can boot here (for `skip`), or undefined. */
export const debianGuestMissing = (): string | undefined =>
  existsSync(join(folder, 'stamp')) ? undefined : 'the Debian guest is not built: run node scripts/setup.js --debian-guest as root'

type Answer = { code: number; out: string }

type BenchFigures = {
  transactions: number
  failed: number
  /** Between two transactions that ended one after the other, by the guest's clock. */
  longestGapMs: number
}

export type DebianGuest = {
  readonly name: string
  /** The site where it runs. */
  site(): Promise<string>
  /** One line of shell, as root. Not while a migration ends: output that comes between two sites is lost. */
  run(command: string, ms?: number): Promise<Answer>
  /** The same; a command that fails is an error with its output. */
  must(command: string, ms?: number): Promise<string>
  /** Makes the tables of pgbench: 100,000 accounts for each of `scale`. */
  initBench(scale?: number): Promise<void>
  /** Transactions at this rate in the background, until stopBench. */
  startBench(perSecond?: number): Promise<void>
  stopBench(): Promise<BenchFigures>
  /** Every table and index, as the disk has it: PostgreSQL is restarted, and the page cache is dropped. */
  checkTables(): Promise<void>
  /** Its kernel has met no fault of disk, file system, memory or clock since it booted. */
  checkKernel(): Promise<void>
  /** SHA-256 of a file, read from the disk. */
  checksum(path: string): Promise<string>
  /** Shuts it down in order at its site, and lets e2fsck look at its disk. */
  shutDownAndCheckDisk(): Promise<void>
  /** Starts it again where it was shut down. */
  start(site: string): Promise<void>
}

type DebianGuestOptions = { name?: string; memory?: string; size?: string }

/** Imports the image at every site, creates the VM at `siteName`, and waits until systemd has started everything. */
export async function bootDebian(lab: Lab, siteName: string, options: DebianGuestOptions = {}): Promise<DebianGuest> {
  const { name = 'debian', memory = '768MiB', size = '4GiB' } = options
  for (const { imagesDir, node } of lab.sites()) {
    for (const file of ['vmlinuz', 'initrd.img']) await symlink(join(folder, file), join(imagesDir, `debian-${file}`))
    await node.registry.images.import({ name: IMAGE, from: join(folder, 'disk.raw'), format: 'raw' })
  }
  const spec = toYaml({
    ...{ name, memory, kernel: 'debian-vmlinuz', initrd: 'debian-initrd.img' },
    append: 'root=/dev/vda rw console=ttyS0 quiet loglevel=3 systemd.show_status=false',
    disks: [{ mode: 'local', image: IMAGE, size }],
  })
  await lab.site(siteName).api('POST', '/v1/vms', { spec })
  const guest = createGuest(lab, name)
  await guest.start(siteName)
  // The file system has the size of the image.
  await guest.must('resize2fs /dev/vda')
  return guest
}

function createGuest(lab: Lab, name: string): DebianGuest {
  const site = async () => {
    for (const at of lab.sites()) {
      const { vms } = await at.api<{ vms: VmFacts[] }>('GET', '/v1/vms')
      if (vms.some(vm => vm.name === name && vm.state === 'running')) return at.name
    }
    throw new Error(`${name} runs at no site; the log:\n${lab.logTail()}`)
  }
  const run = async (command: string, ms = RUN_MS) => await runOnConsole(lab.site(await site()).socketPath, name, command, ms)
  const must = async (command: string, ms = RUN_MS) => {
    const { code, out } = await run(command, ms)
    assert.is(code, 0, `'${command}' in the guest: ${out}`)
    return out.trim()
  }
  return {
    ...{ name, site, run, must },
    ...benchOf(must),
    async checkKernel() {
      assert.is(await must(`dmesg --kernel | grep -E "${KERNEL_FAULTS}" || true`), '')
    },
    async checksum(path) {
      return (await must(`sync; echo 3 > /proc/sys/vm/drop_caches; sha256sum ${path}`)).split(' ')[0]!
    },
    async shutDownAndCheckDisk() {
      const at = await site()
      await lab.site(at).node.registry.stop(name, { timeoutMs: BOOT_MS })
      await checkDisk(join(lab.dir, at), name)
    },
    async start(at) {
      await lab.site(at).api('POST', `/v1/vms/${name}/start`, {})
      await awaitPrompt(lab.site(at).socketPath, name)
      // 'degraded' has its own exit code: a unit that failed is for the test to see.
      const { out } = await run('systemctl is-system-running --wait; systemctl --failed --no-legend --plain', BOOT_MS)
      assert.is(out.trim(), 'running')
    },
  }
}

const asPostgres = (command: string) => `cd / && runuser -u postgres -- sh -c '${command}'`

function benchOf(must: DebianGuest['must']) {
  return {
    async initBench(scale = 1) {
      await must(asPostgres(`createdb ${TABLES} && pgbench -q -i -s ${scale} ${TABLES}`), BOOT_MS)
    },
    async startBench(perSecond = 20) {
      const bench = `pgbench -n -c 4 -R ${perSecond} -T 36000 -l --log-prefix=${BENCH}.log ${TABLES}`
      // The shell that waits for pgbench notes its exit code.
      await must(`rm -f ${BENCH}.*; ${asPostgres(`(${bench} & echo $! > ${BENCH}.pid; wait $!; echo exit code $?) > ${BENCH}.out 2>&1 &`)}`)
      const logged = `grep -qs . ${BENCH}.log.*`
      await must(`for i in $(seq 100); do ${logged} && break; sleep 0.3; done; ${logged}`)
    },
    async stopBench(): Promise<BenchFigures> {
      // As if its time had passed: it ends its transactions and reports.
      await must(`kill -ALRM $(cat ${BENCH}.pid); for i in $(seq 200); do grep -q "exit code" ${BENCH}.out && break; sleep 0.2; done`)
      const out = await must(`cat ${BENCH}.out`)
      assert.match(out, /exit code 0/, out)
      const figure = (pattern: RegExp) => Number(pattern.exec(out)?.[1] ?? Number.NaN)
      const gaps = `sort -n -k5,5 -k6,6 | awk '{t=$5*1000+$6/1000; if (NR>1 && t-l>m) m=t-l; l=t} END {printf "%.0f", m}'`
      return {
        transactions: figure(/transactions actually processed: (\d+)/),
        failed: figure(/number of failed transactions: (\d+)/),
        longestGapMs: Number(await must(`cat ${BENCH}.log.* | ${gaps}`)),
      }
    },
    async checkTables() {
      await must('systemctl restart postgresql@15-main && sync && echo 3 > /proc/sys/vm/drop_caches', BOOT_MS)
      await must(asPostgres(`pg_amcheck --install-missing --heapallindexed --parent-check ${TABLES}`), BOOT_MS)
    },
  }
}

const openConsole = (socketPath: string, name: string, replay: 0 | 1): Promise<Duplex> =>
  requestUpgrade({ socketPath, path: `/v1/vms/${name}/console?replay=${replay}` })

/** Reads the console until `find` gives something. The error of a late one has the last lines. */
async function readUntil<T>(socket: Duplex, find: (text: string) => T | undefined, ms: number, what: string): Promise<T> {
  let text = ''
  const reading = async () => {
    for await (const chunk of socket) {
      text += (chunk as Buffer).toString('latin1').replaceAll('\r', '')
      const found = find(text)
      if (found !== undefined) return found
    }
    throw new Error(`${what}: the console ended`)
  }
  try {
    return await within(reading(), { ms, what })
  } catch (error) {
    throw new Error(`${(error as Error).message}; the console's last lines:\n${text.slice(-1500)}`, { cause: error })
  } finally {
    socket.destroy()
  }
}

async function awaitPrompt(socketPath: string, name: string): Promise<void> {
  // The console's log has earlier boots: a prompt that comes from now on counts.
  const socket = await openConsole(socketPath, name, 0)
  await readUntil(socket, text => text.includes(PROMPT) || undefined, BOOT_MS, 'the prompt of the Debian guest')
}

async function runOnConsole(socketPath: string, name: string, command: string, ms: number): Promise<Answer> {
  if (command.includes('\n') || command.length > COMMAND_CHARACTERS_MAX)
    throw new TypeError('a command is one line of at most 3000 characters')
  const mark = randomBytes(6).toString('hex')
  const socket = await openConsole(socketPath, name, 0)
  // printf puts the markers together, so the echo of this line has none of them.
  const line = `printf '<%s:begin>' ${mark}; { ${command}; } < /dev/null; printf '<%s:%d:end>' ${mark} $?\n`
  const pattern = new RegExp(`<${mark}:begin>([^]*)<${mark}:(\\d+):end>`)
  socket.write(line)
  const [, out = '', code] = await readUntil(socket, text => pattern.exec(text) ?? undefined, ms, `'${command}' in the guest`)
  return { code: Number(code), out }
}

/** e2fsck over the disk of a VM that is stopped, read with its image under it. */
async function checkDisk(siteDir: string, name: string): Promise<void> {
  const raw = join(siteDir, `${name}.raw`)
  const file = join(siteDir, 'state', 'vms', name, 'disks', '0.qcow2')
  const backing = { driver: 'raw', file: { driver: 'file', filename: join(siteDir, 'images', IMAGE) } }
  const chain = { driver: 'qcow2', file: { driver: 'file', filename: file }, backing }
  try {
    execFileSync('qemu-img', ['check', '-q', file])
    execFileSync('qemu-img', ['convert', '-O', 'raw', `json:${JSON.stringify(chain)}`, raw])
    const { status, stdout, stderr } = spawnSync('/usr/sbin/e2fsck', ['-f', '-n', raw], { encoding: 'utf8' })
    assert.is(status, 0, `e2fsck finds faults on the disk of ${name}:\n${stdout}${stderr}`)
  } finally {
    await rm(raw, { force: true })
  }
}
