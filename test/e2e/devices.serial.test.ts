// VMs with each device of the specification move while their guest runs: there and back, and the target's QEMU loads
// the device's state.
import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { readFile, stat, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { join } from 'node:path'
import type { Registry } from '../../edge-node/registry/registry.ts'
import { eventually } from '../../ops/deadline.ts'
import { beginSoon } from '../support/disk-scene.ts'
import { type Lab, labMissing, openLab } from '../support/lab.ts'
import { assert, suite } from '../support/suite.ts'
import { startWriter, type WriterGuest } from '../support/writer-guest.ts'

const test = suite('e2e/devices', { ms: 240_000 })
const skip = labMissing()

async function move(lab: Lab, guest: WriterGuest, to: string): Promise<void> {
  const record = await lab.until(await beginSoon(lab, { vm: guest.name, to }))
  assert.is(record.outcome, 'completed', `${JSON.stringify(record.error)}\n${lab.logTail()}`)
  await guest.assertWrites(to)
}

const monitor = (lab: Lab, site: string, guest: WriterGuest, command: string) =>
  lab.site(site).node.registry.machine(guest.name).qmp.execute<string>('human-monitor-command', { 'command-line': command })

async function firstBytes(path: string): Promise<string> {
  const socket = connect(path)
  try {
    const [bytes] = await once(socket, 'data', { signal: AbortSignal.timeout(10_000) })
    return String(bytes)
  } finally {
    socket.destroy()
  }
}

/** The PCI devices as the guest finds them. */
const pci = (lab: Lab, site: string, guest: WriterGuest) => monitor(lab, site, guest, 'info pci')

for (const machine of ['pc-i440fx-9.0', 'pc-q35-9.0'])
  test(
    `disks at virtio-scsi and virtio-blk and a CD move there and back (${machine})`,
    async () => {
      await using lab = await openLab({ sites: ['a', 'b'] })
      for (const site of lab.sites()) await writeFile(join(site.imagesDir, 'tools.iso'), Buffer.alloc(1024 * 1024, 'tools'))
      const guest = await startWriter(lab, 'a', {
        machine,
        bus: 'virtio-scsi',
        more:
          '  - {mode: local, size: 16MiB}\n  - {mode: local, size: 16MiB, format: raw, bus: virtio-scsi}\n' +
          '  - {file: tools.iso, mode: readonly, format: raw, cdrom: true}\n',
      })
      const found = await pci(lab, 'a', guest)
      await move(lab, guest, 'b')
      assert.is(await pci(lab, 'b', guest), found)
      assert.match(await monitor(lab, 'b', guest, 'info block'), /blk3[\s\S]*Removable device/)
      await move(lab, guest, 'a')
      await guest.stopAndCompare('a')
    },
    { skip },
  )

for (const machine of ['pc-i440fx-9.0', 'pc-q35-9.0'])
  test(
    `a VM with an agent channel, random numbers, a balloon and a display moves there and back (${machine})`,
    async () => {
      await using lab = await openLab({ sites: ['a', 'b'] })
      const guest = await startWriter(lab, 'a', { machine, top: 'agent: true\nrng: true\nballoon: true\ndisplay: true\n' })
      const found = await pci(lab, 'a', guest)
      for (const to of ['b', 'a']) {
        await move(lab, guest, to)
        assert.is(await pci(lab, to, guest), found)
        const { runDir } = lab.site(to).node.registry.machine(guest.name)
        assert.match(await firstBytes(lab.site(to).node.registry.display(guest.name)), /^RFB 003/)
        assert.ok((await stat(join(runDir, 'agent.sock'))).isSocket())
        for (const socket of ['agent.sock', 'vnc.sock']) assert.is((await stat(join(runDir, socket))).mode & 0o777, 0o600, socket)
      }
      await guest.stopAndCompare('a')
    },
    { skip },
  )

test(
  'the seed of cloud-init travels with its VM; the target makes none',
  async () => {
    await using lab = await openLab({ sites: ['a', 'b'] })
    const guest = await startWriter(lab, 'a', { top: 'cloudInit: {userData: "#cloud-config\\n"}\n' })
    const seedOf = (site: string) => readFile(join(lab.site(site).node.registry.machine(guest.name).dir, 'disks', '1.raw'))
    const seed = await seedOf('a')
    assert.is(seed.toString('latin1', 32_769, 32_774), 'CD001')
    assert.match(seed.toString('latin1'), '#cloud-config\n')
    await move(lab, guest, 'b')
    assert.ok((await seedOf('b')).equals(seed))
    await guest.stopAndCompare('b')
  },
  { skip: skip || (spawnSync('xorriso', ['--version']).status !== 0 && 'xorriso is not installed') },
)

for (const method of ['live', 'cold'] as const)
  test(
    `a UEFI guest moves with its variables (${method})`,
    async () => {
      await using lab = await openLab({ sites: ['a', 'b'] })
      const [a, b] = ['a', 'b'].map(name => lab.site(name).node.registry) as [Registry, Registry]
      const spec = 'name: uefi\nmemory: 128MiB\nmachine: pc-q35-9.0\naccelerator: tcg\nfirmware: uefi\ndisks: [{mode: local, size: 8MiB}]\n'
      await lab.site('a').api('POST', '/v1/vms', { spec })
      const variablesOf = (registry: Registry) => readFile(join(registry.machine('uefi').dir, 'disks', '1.raw'))
      await lab.site('a').api('POST', '/v1/vms/uefi/start', {})
      const blank = await readFile('/usr/share/OVMF/OVMF_VARS_4M.fd')
      // The firmware writes its boot entries when it starts for the first time.
      await eventually(async () => !(await variablesOf(a)).equals(blank) || undefined, { ms: 120_000, what: 'variables that UEFI wrote' })
      const record = await lab.until(await beginSoon(lab, { vm: 'uefi', to: 'b', method }))
      assert.is(record.outcome, 'completed', `${JSON.stringify(record.error)}\n${lab.logTail()}`)
      assert.ok(!(await variablesOf(b)).equals(blank))
      assert.is((await b.machine('uefi').commands.queryStatus()).status, 'running')
      await b.machine('uefi').commands.stop()
      assert.is(existsSync(join(lab.dir, 'a', 'state', 'vms', 'uefi')), false, 'nothing stays at the source')
    },
    { skip: skip || (!existsSync('/usr/share/OVMF/OVMF_CODE_4M.fd') && 'ovmf is not installed') },
  )

test.run()
