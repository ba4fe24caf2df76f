import { closeSync, fstatSync, readFileSync, readSync, statSync, writeSync } from 'node:fs'
import { chmod, mkdir, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { adoptMachine, type LaunchOptions, type RunningVm, startMachine } from '../../../edge-node/vm/machine.ts'
import { identify, isAlive } from '../../../edge-node/vm/process.ts'
import { findQemu } from '../../../edge-node/vm/qemu.ts'
import { killLeftover } from '../../../edge-node/vm/runtime-folder.ts'
import { parseSpec } from '../../../edge-node/vm/spec.ts'
import { within } from '../../../ops/deadline.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { assert, codeOf, suite, thrown } from '../../support/suite.ts'
import { echoSpec, heard, qemuMissing, type TestSite, testSite } from './echo-guest.ts'

const test = suite('edge-node/vm/machine', { ms: 60_000 })
const skip = qemuMissing()
const readText = (path: string) => readFileSync(path, 'utf8')

const options = (site: TestSite, more: Partial<LaunchOptions> = {}): LaunchOptions => ({
  spec: parseSpec(echoSpec('vm-1')),
  dir: join(site.stateDir, 'vm-1'),
  paths: { imagesDir: site.imagesDir },
  accelerator: 'tcg',
  incoming: false,
  qemu: { binary: 'qemu-system-x86_64', version: '10.0.2' },
  ...more,
})

/** A running machine that is killed when disposed. */
const start = async (site: TestSite, more: Partial<LaunchOptions> = {}): Promise<RunningVm & AsyncDisposable> => {
  const vm = await startMachine(options(site, more))
  return Object.assign(vm, { [Symbol.asyncDispose]: () => killLeftover(vm.dir) })
}

test(
  'a machine starts paused, runs after cont, echoes on its console and ends when told',
  async () => {
    await using site = await testSite()
    await using vm = await start(site)
    assert.equal(await vm.commands.queryStatus(), { status: 'prelaunch', running: false })
    assert.is(await vm.commands.queryMemoryBytes(), vm.memoryBytes)
    await vm.commands.cont()
    await heard(vm.console!.follow(), 'G')
    await vm.console!.write(Buffer.from('hello'))
    assert.match(await heard(vm.console!.follow(), 'hello'), /^Ghello/)
    const exit = await vm.stop()
    assert.equal(exit, { code: 0, signal: null, logTail: '' })
    assert.is(vm.alive, false)
    assert.is(identify(vm.pid), undefined)
    assert.equal((await readdir(vm.dir)).sort(), ['qemu.log', 'serial.log'])
  },
  { skip },
)

test(
  'the version is that of the process, not the one that was measured before',
  async () => {
    await using site = await testSite()
    const { version } = await findQemu()
    await using vm = await start(site, { qemu: { binary: 'qemu-system-x86_64', version: '1.2.3' } })
    assert.is(vm.qemuVersion, version)
    vm.detach()
    const again = await adoptMachine({ spec: parseSpec(echoSpec('vm-1')), dir: vm.dir })
    assert.is(again?.qemuVersion, version)
  },
  { skip },
)

test(
  'sockets and folder are ours alone',
  async () => {
    await using site = await testSite()
    await using vm = await start(site)
    const mode = (path: string) => (statSync(path).mode & 0o777).toString(8)
    assert.equal([vm.dir, vm.runDir, join(vm.runDir, 'qmp.sock'), join(vm.runDir, 'serial.sock')].map(mode), ['700', '700', '600', '600'])
  },
  { skip },
)

test(
  "the memory descriptor is the guest's own memory, readable and writable",
  async () => {
    await using site = await testSite()
    await using vm = await start(site)
    const fd = await vm.memoryFd()
    try {
      assert.is(fstatSync(fd).size, vm.memoryBytes)
      await vm.commands.cont()
      await heard(vm.console!.follow(), 'G')
      const sector = Buffer.alloc(512)
      readSync(fd, sector, 0, 512, 0x7c00) // where the BIOS loads a boot sector
      assert.is(sector.readUInt16BE(510), 0x55aa)
      writeSync(fd, Buffer.from('written by the agent'), 0, 20, 16 * 1024 * 1024)
      const file = join(vm.dir, 'memory')
      await vm.commands.pmemsave(16 * 1024 * 1024, 20, file)
      assert.is(readText(file), 'written by the agent')
    } finally {
      closeSync(fd)
    }
    await vm.kill()
    assert.is(await codeOf(() => vm.memoryFd()), 'QEMU_EXITED')
  },
  { skip },
)

test(
  'a machine outlives its agent and is adopted with its console and memory',
  async () => {
    await using site = await testSite()
    await using vm = await start(site)
    await vm.commands.cont()
    await heard(vm.console!.follow(), 'G')
    vm.detach()
    assert.is(isAlive(vm.identity), true)
    const again = await adoptMachine({ spec: parseSpec(echoSpec('vm-1')), dir: vm.dir })
    assert.ok(again)
    assert.equal([again.pid, again.adopted, again.accelerator, again.qemuVersion], [vm.pid, true, 'tcg', '10.0.2'])
    assert.is(again.console?.replay().toString(), 'G')
    await again.console?.write(Buffer.from('x'))
    assert.is(await heard(again.console!.follow(), 'x'), 'Gx')
    closeSync(await again.memoryFd())
    process.kill(vm.pid, 'SIGKILL')
    await within(again.exited, { ms: 5_000, what: 'the end' })
    assert.is(await adoptMachine({ spec: parseSpec(echoSpec('vm-1')), dir: vm.dir }), undefined)
  },
  { skip },
)

test(
  'a machine with incoming waits for a migration',
  async () => {
    await using site = await testSite()
    await using vm = await start(site, { incoming: true })
    assert.equal(await vm.commands.queryStatus(), { status: 'inmigrate', running: false })
    await vm.commands.setCapabilities({ events: true, 'return-path': true })
    await vm.commands.setParameters({ announceRounds: 0 })
    await vm.commands.migrateIncoming(`unix:${join(vm.dir, 'in.sock')}`)
    assert.is((await vm.commands.queryMigrate()).status, 'setup')
  },
  { skip },
)

test(
  'a second QEMU is not started beside a running one',
  async () => {
    await using site = await testSite()
    await using vm = await start(site)
    assert.is(await codeOf(() => startMachine(options(site))), 'VM_STATE')
    assert.is(vm.alive, true)
  },
  { skip },
)

test(
  'a QEMU that ends by itself is heard of with its exit and log',
  async () => {
    await using site = await testSite()
    await using vm = await start(site)
    process.kill(vm.pid, 'SIGTERM')
    const exit = await within(vm.exited, { ms: 5_000, what: 'the end' })
    assert.match(exit.logTail, 'terminating on signal 15')
    assert.is(await codeOf(() => vm.commands.queryStatus()), 'QEMU_EXITED')
    assert.is(vm.console?.ended, true)
  },
  { skip },
)

test(
  'a QEMU that refuses its command line ends the start with its own words',
  async () => {
    await using site = await testSite()
    const spec = { ...parseSpec(echoSpec('vm-1')), machine: 'pc-i440fx-99.0' }
    const error = await thrown(() => startMachine(options(site, { spec })))
    assert.ok(error instanceof GodwitError && error.code === 'QEMU_EXITED')
    assert.match((error as Error).message, 'unsupported machine type')
  },
  { skip },
)

test('a start without QEMU, with a silent one, or cut short leaves no process behind', async () => {
  await using site = await testSite()
  const missing = { binary: 'qemu-system-that-nobody-has', version: '10.0.2' }
  assert.is(await codeOf(() => startMachine(options(site, { qemu: missing }))), 'PREFLIGHT_QEMU_MISSING')
  const pidFile = join(site.dir, 'pid')
  const binary = join(site.dir, 'silent')
  await writeFile(binary, `#!/bin/sh\necho $$ > ${pidFile}\nexec sleep 60\n`)
  await chmod(binary, 0o755)
  const silent = { binary, version: '10.0.2' }
  assert.is(await codeOf(() => startMachine(options(site, { qemu: silent, startTimeoutMs: 300 }))), 'QEMU_TIMEOUT')
  assert.is(identify(Number(readText(pidFile))), undefined)
  const reason = new Error('cut short')
  assert.is(await thrown(() => startMachine(options(site, { qemu: silent, signal: AbortSignal.abort(reason) }))), reason)
  assert.is(identify(Number(readText(pidFile))), undefined)
})

test('a folder too deep for a socket is refused, and says so', async () => {
  await using site = await testSite()
  const dir = join(site.stateDir, 'x'.repeat(100))
  await mkdir(dir)
  assert.is(await codeOf(() => startMachine(options(site, { dir }))), 'CONFIG_INVALID')
})

test('another process with the same pid is not taken for ours', () => {
  const me = identify(process.pid)
  assert.ok(me && isAlive(me))
  assert.is(isAlive({ ...me, startTicks: '1' }), false)
  assert.is(isAlive({ ...me, bootId: 'another boot' }), false)
})

test.run()
