// Stopped VMs move by method cold: all local disks travel without a QEMU, and the VM is stopped at exactly one site, or
// starts there if that is wanted.

import { execFileSync, spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { eventually } from '../../ops/deadline.ts'
import type { MigrationRequest } from '../../wire/admin.ts'
import { MIB } from '../../wire/units.ts'
import { beginSoon } from '../support/disk-scene.ts'
import { type Lab, labMissing, openLab } from '../support/lab.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('e2e/stopped', { ms: 240_000 })
const skip = labMissing() || (spawnSync('qemu-nbd', ['--version']).status !== 0 && 'qemu-utils is not installed')

const NAME = 'vm-1'
const vmDir = (lab: Lab, site: string) => join(lab.dir, site, 'state', 'vms', NAME)
const disk = (lab: Lab, site: string, number: number, format: string) => join(vmDir(lab, site), 'disks', `${number}.${format}`)
const registry = (lab: Lab, site: string) => lab.site(site).node.registry

/** At site a: disk 0 on an image, disk 1 empty, both with what a guest has written to them since. */
async function openStopped(format: 'qcow2' | 'raw', mib: number): Promise<Lab> {
  const lab = await openLab({ sites: ['a', 'b'] })
  const image = randomBytes(2 * MIB + 512)
  for (const site of lab.sites()) {
    const path = join(site.imagesDir, 'base.raw')
    await writeFile(path, image)
    await site.node.registry.images.import({ name: 'base', from: path, format: 'raw' })
    await rm(path)
  }
  const disks = `  - {mode: local, image: base, size: 8MiB, format: ${format}}\n  - {mode: local, size: 64MiB, format: raw}\n`
  const spec = `name: ${NAME}\nmemory: 32MiB\nmachine: pc-i440fx-9.0\naccelerator: tcg\nserial: false\ndisks:\n${disks}`
  await lab.site('a').api('POST', '/v1/vms', { spec })
  const write = (number: number, kind: string, ...commands: string[]) =>
    execFileSync('qemu-io', ['-f', kind, ...commands.flatMap(command => ['-c', command]), disk(lab, 'a', number, kind)])
  write(0, format, 'write -P 17 100k 200k', 'write -z 1M 128k', 'write -P 18 8388096 512')
  await writeFile(disk(lab, 'a', 1, 'raw'), randomBytes(mib * MIB), { flag: 'r+' })
  return lab
}

/** What both disks hold at a site, as a guest would read it. */
async function contents(lab: Lab, site: string, format: string): Promise<string[]> {
  const hashes = [[0, format] as const, [1, 'raw'] as const].map(async ([number, kind]) => {
    const raw = join(lab.dir, `compare.${number}`)
    execFileSync('qemu-img', ['convert', '-f', kind, '-O', 'raw', disk(lab, site, number, kind), raw])
    const hash = createHash('sha256').update(readFileSync(raw)).digest('hex')
    await rm(raw)
    return hash
  })
  return await Promise.all(hashes)
}

async function move(lab: Lab, to: string, more: Partial<MigrationRequest> = {}) {
  const record = await lab.until(await beginSoon(lab, { vm: NAME, to, method: 'cold', ...more }))
  assert.is(record.outcome, 'completed', `${JSON.stringify(record.error)}\n${lab.logTail()}`)
  return record.report!
}

const holders = (lab: Lab): string[] => ['a', 'b'].filter(site => existsSync(vmDir(lab, site)))
const servers = (lab: Lab): string[] =>
  readdirSync('/proc').filter(pid => {
    try {
      const words = readFileSync(`/proc/${pid}/cmdline`, 'utf8')
      return words.startsWith('qemu-nbd\0') && words.includes(lab.dir)
    } catch {
      return false
    }
  })

for (const format of ['qcow2', 'raw'] as const)
  test(
    `a stopped VM with a ${format} disk on an image moves there and back, stays stopped, and starts where it is told to`,
    async () => {
      await using lab = await openStopped(format, 8)
      const before = await contents(lab, 'a', format)
      const report = await move(lab, 'b')
      assert.equal([report.downtimeMs, report.guestBytes, report.notes], [null, 0, []])
      assert.ok(report.disks && report.disks.bytesSent >= 8 * MIB && report.disks.bytesSent < 12 * MIB, JSON.stringify(report.disks))
      assert.equal(holders(lab), ['b'])
      assert.equal(await contents(lab, 'b', format), before)
      if (format === 'qcow2') execFileSync('qemu-img', ['check', '-q', disk(lab, 'b', 0, 'qcow2')])
      const there = registry(lab, 'b').get(NAME)
      assert.equal([there.state, there.epoch, there.pid], ['stopped', 2, undefined])
      await move(lab, 'a')
      assert.equal([registry(lab, 'a').get(NAME).epoch, holders(lab)], [3, ['a']])
      assert.equal(await contents(lab, 'a', format), before)
      assert.equal(servers(lab), [])
      if (format === 'raw') return
      await move(lab, 'b', { start: true })
      assert.equal([registry(lab, 'b').get(NAME).state, holders(lab)], ['running', ['b']])
    },
    { skip },
  )

test(
  'while it moves it cannot be started, stopped or deleted; cancelled, or with its link gone, it is stopped at its source as it was',
  async () => {
    await using lab = await openStopped('qcow2', 48)
    const before = await contents(lab, 'a', 'qcow2')
    const ends: [outcome: string, end: (id: string) => Promise<unknown>][] = [
      ['cancelled', id => lab.api('DELETE', `/v1/migrations/${id}`)],
      ['failed', async () => void process.kill(Number(servers(lab)[0]), 'SIGKILL')],
    ]
    for (const [outcome, end] of ends) {
      lab.valve.hold(index => index >= 2, { afterBytes: 16 * 1024 })
      const id = await beginSoon(lab, { vm: NAME, to: 'b', method: 'cold' })
      await lab.valve.reached()
      assert.is(registry(lab, 'a').get(NAME).state, 'migrating')
      for (const order of ['start', 'stop', 'delete'] as const)
        assert.is(await codeOf(() => registry(lab, 'a')[order](NAME)), 'VM_STATE', order)
      await end(id)
      lab.valve.open()
      const record = await lab.until(id)
      assert.is(record.outcome, outcome, `${JSON.stringify(record.error)}\n${lab.logTail()}`)
      const here = registry(lab, 'a').get(NAME)
      assert.equal([here.state, here.epoch, here.doubt], ['stopped', 1, false])
      assert.equal(await contents(lab, 'a', 'qcow2'), before)
      const isClean = () => (servers(lab).length === 0 && holders(lab).length === 1 ? true : undefined)
      await eventually(isClean, { ms: 20_000, what: 'the end of all disk servers and of the copy at the target' })
    }
    await move(lab, 'b')
    assert.equal(await contents(lab, 'b', 'qcow2'), before)
  },
  { skip },
)

test(
  'an agent that restarts in the middle: the VM is stopped at its source; one that restarts at the target before the commit gives it back',
  async () => {
    await using lab = await openStopped('qcow2', 48)
    const before = await contents(lab, 'a', 'qcow2')
    for (const site of ['a', 'b']) {
      lab.valve.hold(index => index >= 2, { afterBytes: 16 * 1024 })
      const id = await beginSoon(lab, { vm: NAME, to: 'b', method: 'cold' })
      await lab.valve.reached()
      await lab.site(site).stop()
      lab.valve.open()
      await lab.site(site).start()
      const record = await lab.until(id)
      assert.is(record.outcome, 'failed', `${site}: ${JSON.stringify(record.error)}\n${lab.logTail()}`)
      await eventually(() => (registry(lab, 'a').get(NAME).state === 'stopped' ? true : undefined), { ms: 20_000, what: 'stopped at a' })
      assert.is(registry(lab, 'a').get(NAME).doubt, false)
      await eventually(() => (holders(lab).length === 1 ? true : undefined), { ms: 20_000, what: 'the end of the copy at the target' })
      assert.equal(await contents(lab, 'a', 'qcow2'), before)
    }
  },
  { skip },
)

test.run()
