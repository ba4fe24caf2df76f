// What goes wrong while local disks travel: the guest goes on writing at its source, nothing stays at the target, and
// the next try succeeds.
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { eventually } from '../../ops/deadline.ts'
import { beginSoon } from '../support/disk-scene.ts'
import { type Lab, labMissing, openLab } from '../support/lab.ts'
import { assert, suite } from '../support/suite.ts'
import { startWriter, type WriterGuest } from '../support/writer-guest.ts'

const test = suite('e2e/disk-faults', { ms: 240_000 })
const skip = labMissing() || (spawnSync('qemu-nbd', ['--version']).status !== 0 && 'qemu-utils is not installed')
const isRoot = process.getuid?.() === 0

const vmDir = (lab: Lab, site: string, name: string) => join(lab.dir, site, 'state', 'vms', name)

/** Processes of this program whose command line names this lab. */
const processes = (lab: Lab, program: string): number[] =>
  readdirSync('/proc').flatMap(pid => {
    try {
      const words = readFileSync(`/proc/${pid}/cmdline`, 'utf8')
      return words.startsWith(`${program}\0`) && words.includes(lab.dir) ? [Number(pid)] : []
    } catch {
      return []
    }
  })

const DISKS = '  - {mode: local, size: 64MiB, format: raw}\n'

/** Data on disk 1. */
async function fill(lab: Lab, guest: WriterGuest, mib: number): Promise<void> {
  const { qmp } = lab.site('a').node.registry.machine(guest.name)
  for (let at = 0; at < mib; at += 4)
    await qmp.execute('human-monitor-command', {
      'command-line': `qemu-io -d /machine/peripheral/blk1/virtio-backend "write -P ${1 + (at % 250)} ${at}M 4M"`,
    })
}

async function failsWith(lab: Lab, guest: WriterGuest, code: string, meanwhile: (id: string) => Promise<void>): Promise<void> {
  const id = await beginSoon(lab, { vm: guest.name, to: 'b' })
  await meanwhile(id)
  const record = await lab.until(id)
  assert.is(record.error?.code, code, `${JSON.stringify(record.error)}\n${lab.logTail()}`)
  await guest.assertWrites('a')
  const gone = () => (existsSync(vmDir(lab, 'b', guest.name)) ? undefined : true)
  await eventually(gone, { ms: 60_000, what: 'nothing at the target' })
  await eventually(() => (processes(lab, 'qemu-nbd').length === 0 ? true : undefined), { ms: 60_000, what: 'the end of all disk servers' })
}

test(
  'the disk server of the target is killed, and the link is cut: the first fails the migration, the second does not',
  async () => {
    await using lab = await openLab({ sites: ['a', 'b'] })
    const guest = await startWriter(lab, 'a', { more: DISKS })
    await fill(lab, guest, 48)
    // Disks travel on the page streams (index 2 and on) before memory does.
    const holdDisks = () => lab.valve.hold(index => index >= 2, { afterBytes: 16 * 1024 })
    holdDisks()
    await failsWith(lab, guest, 'NBD_CLOSED', async () => {
      await lab.valve.reached()
      const servers = processes(lab, 'qemu-nbd')
      assert.is(servers.length, 2)
      for (const pid of servers) process.kill(pid, 'SIGKILL')
      lab.valve.open()
    })
    holdDisks()
    const id = await beginSoon(lab, { vm: guest.name, to: 'b' })
    await lab.valve.reached()
    lab.sever()
    lab.valve.open()
    const record = await lab.until(id)
    assert.is(record.outcome, 'completed', `${JSON.stringify(record.error)}\n${lab.logTail()}`)
    assert.ok((record.report?.reconnects ?? 0) >= 1, 'the link was lost while the migration ran')
    await guest.assertWrites('b')
    await guest.stopAndCompare('b')
  },
  { skip },
)

test(
  'a target whose file system is full refuses with DISK_FULL, and takes the VM when there is room',
  async () => {
    await using lab = await openLab({ sites: ['a', 'b'] })
    const guest = await startWriter(lab, 'a', { more: DISKS })
    await fill(lab, guest, 48)
    // A small file system for the VMs of the target.
    const vms = join(lab.dir, 'b', 'state', 'vms')
    await mkdir(vms, { recursive: true })
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=16m', 'godwit-test', vms])
    try {
      await failsWith(lab, guest, 'DISK_FULL', async () => {})
      execFileSync('mount', ['-o', 'remount,size=200m', vms])
      const record = await lab.until(await beginSoon(lab, { vm: guest.name, to: 'b' }))
      assert.is(record.outcome, 'completed', `${JSON.stringify(record.error)}\n${lab.logTail()}`)
      await guest.assertWrites('b')
      await guest.stopAndCompare('b')
    } finally {
      await lab.site('b').stop()
      execFileSync('umount', ['-l', vms])
    }
  },
  { skip: skip || (!isRoot && 'needs root, to mount a small file system') },
)

test(
  'cancelled when the target has loaded all: the source makes its disks active again, and the guest writes on',
  async () => {
    await using lab = await openLab({ sites: ['a', 'b'] })
    const guest = await startWriter(lab, 'a', { more: DISKS })
    for (const method of ['live', 'cold'] as const) {
      const loaded = Promise.withResolvers<void>()
      const cancelled = Promise.withResolvers<void>()
      lab.site('b').onLoaded = async () => {
        loaded.resolve()
        await cancelled.promise
      }
      const id = await beginSoon(lab, { vm: guest.name, to: 'b', method })
      const isEarly = lab.until(id).then(({ error }) => {
        throw new Error(`it ended before it was loaded: ${JSON.stringify(error)}\n${lab.logTail()}`)
      })
      isEarly.catch(() => {})
      await Promise.race([loaded.promise, isEarly])
      await lab.api('DELETE', `/v1/migrations/${id}`)
      cancelled.resolve()
      assert.is((await lab.until(id)).outcome, 'cancelled', lab.logTail())
      lab.site('b').onLoaded = undefined
      await guest.assertWrites('a')
      const gone = () => (existsSync(vmDir(lab, 'b', guest.name)) ? undefined : true)
      await eventually(gone, { ms: 60_000, what: 'nothing at the target' })
    }
    const record = await lab.until(await beginSoon(lab, { vm: guest.name, to: 'b' }))
    assert.is(record.outcome, 'completed', `${JSON.stringify(record.error)}\n${lab.logTail()}`)
    await guest.assertWrites('b')
    await guest.stopAndCompare('b')
  },
  { skip },
)

test(
  'a backup that runs in its QEMU, and an export of somebody else, are refused by name; then it moves',
  async () => {
    await using lab = await openLab({ sites: ['a', 'b'] })
    const guest = await startWriter(lab, 'a', { more: DISKS })
    const { qmp } = lab.site('a').node.registry.machine(guest.name)
    const refused = async (text: RegExp) => {
      const { error } = await lab.until(await beginSoon(lab, { vm: guest.name, to: 'b' }))
      assert.is(error?.code, 'VM_STATE', `${JSON.stringify(error)}\n${lab.logTail()}`)
      assert.match(error?.message ?? '', text)
      await guest.assertWrites('a')
    }
    const target = { driver: 'null-co', 'node-name': 'backup', size: 64 * 1024 * 1024 }
    await qmp.execute('blockdev-add', target)
    await qmp.execute('blockdev-backup', { 'job-id': 'backup', device: 'disk1', target: 'backup', sync: 'full', speed: 65_536 })
    await refused(/block job \(backup\)/)
    await qmp.execute('block-job-cancel', { device: 'backup', force: true })
    await eventually(async () => ((await qmp.execute<unknown[]>('query-block-jobs')).length === 0 ? true : undefined), {
      ms: 60_000,
      what: 'the end of the backup',
    })
    await qmp.execute('blockdev-del', { 'node-name': 'backup' })
    await qmp.execute('nbd-server-start', { addr: { type: 'unix', data: { path: 'other.sock' } } })
    await qmp.execute('block-export-add', { type: 'nbd', id: 'other', 'node-name': 'disk1', writable: false })
    await refused(/export of a disk \(other\)/)
    await qmp.execute('nbd-server-stop')
    const record = await lab.until(await beginSoon(lab, { vm: guest.name, to: 'b' }))
    assert.is(record.outcome, 'completed', `${JSON.stringify(record.error)}\n${lab.logTail()}`)
    await guest.stopAndCompare('b')
  },
  { skip },
)

test(
  'an image of another content at the target is refused before anything moves',
  async () => {
    await using lab = await openLab({ sites: ['a', 'b'] })
    const guest = await startWriter(lab, 'a')
    const { images } = lab.site('b').node.registry
    await images.remove('writer')
    const other = join(lab.dir, 'other.raw')
    execFileSync('sh', ['-c', `head -c 1M /dev/urandom > ${other}`])
    await images.import({ name: 'writer', from: other, format: 'raw' })
    await failsWith(lab, guest, 'PREFLIGHT_FILE_MISSING', async () => {})
  },
  { skip },
)

test.run()
