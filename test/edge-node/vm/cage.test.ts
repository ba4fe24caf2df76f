import { execFile, execFileSync, spawn } from 'node:child_process'
import { closeSync, constants, existsSync, openSync, readFileSync } from 'node:fs'
import { stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { fileSizeLimit } from '../../../edge-node/vm/cage.ts'
import { parseSpec } from '../../../edge-node/vm/spec.ts'
import { assertTapsFree, tapHolder } from '../../../edge-node/vm/taps.ts'
import { cagedCommand, cagedTool, cleanEnvironment, NOT_FOUND } from '../../../ops/cage.ts'
import { eventually } from '../../../ops/deadline.ts'
import { MIB } from '../../../wire/units.ts'
import { assert, codeOf, suite, thrown } from '../../support/suite.ts'
import { tempFolder } from '../../support/temp-folder.ts'
import { qemuMissing } from './echo-guest.ts'

const test = suite('edge-node/vm/cage')

test('a file at its limit is a failed write for the process, not its end', async () => {
  await using folder = await tempFolder()
  const words = ['-c', 'head -c 3000000 /dev/zero > big || true; echo lives', 'sh']
  const { file, args } = cagedCommand('/bin/sh', words, MIB)
  const { stdout } = await promisify(execFile)(file, args, { cwd: folder.path, timeout: 20_000 })
  assert.is(stdout, 'lives\n')
  assert.is((await stat(join(folder.path, 'big'))).size, MIB)
})

test('the limit holds the memory and each written disk at its full size', async () => {
  await using folder = await tempFolder()
  const spec = parseSpec('name: x\nmemory: 64MiB\ndisks: [{ file: d.qcow2, mode: shared, format: qcow2 }]\n')
  const header = Buffer.alloc(104)
  header.writeUInt32BE(0x514649fb, 0)
  header.writeBigUInt64BE(BigInt(8192 * MIB), 24)
  const path = join(folder.path, 'd.qcow2')
  await writeFile(path, header)
  const fd = openSync(path, 'r')
  const limitOf = (format: 'raw' | 'qcow2', bytes: number) => fileSizeLimit(spec, [{ disk: { ...spec.disks[0]!, format }, fd, bytes }])
  assert.ok(limitOf('qcow2', header.length) > 8192 * MIB, 'a qcow2 grows to its virtual size')
  assert.ok(limitOf('qcow2', header.length) < 9000 * MIB)
  assert.is(limitOf('raw', 300 * MIB), (300 + 256) * MIB)
  assert.is(fileSizeLimit(spec, []), (64 + 256) * MIB)
  closeSync(fd)
  // As shared disks are opened: reads past the page cache must be whole, aligned blocks.
  const direct = openSync(path, constants.O_RDWR | constants.O_DIRECT)
  assert.ok(fileSizeLimit(spec, [{ disk: spec.disks[0]!, fd: direct, bytes: header.length }]) > 8192 * MIB, 'opened with O_DIRECT')
  closeSync(direct)
})

test('a program keeps the descriptors that it is given, and no other that this process has open', async () => {
  await using folder = await tempFolder()
  const path = join(folder.path, 'open')
  await writeFile(path, '')
  const fds = Array.from({ length: 12 }, () => openSync(path, 'r'))
  try {
    const words = ['-c', 'cd /proc/self/fd; for n in *; do [ "$n" -ge 3 ] && [ -e "/proc/$$/fd/$n" ] && echo "$n"; done; true', 'sh']
    for (const given of [0, 1, 12]) {
      const { file, args } = cagedCommand('/bin/bash', words, MIB, { firstUngiven: 3 + given })
      const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'inherit', ...fds] })
      const text = (await child.stdout!.toArray()).join('')
      const kept = text
        .split('\n')
        .filter(Boolean)
        .map(Number)
        .toSorted((a, b) => a - b)
      assert.equal(
        kept,
        Array.from({ length: given }, (_, at) => 3 + at),
      )
    }
  } finally {
    for (const fd of fds) closeSync(fd)
  }
})

test('the environment of the agent stays with the agent', () => {
  const env = cleanEnvironment({ PATH: '/bin', GODWIT_TOKEN: 'secret', HOME: '/root', LD_PRELOAD: 'x.so' })
  assert.equal(env, { PATH: '/bin', LANG: 'C.UTF-8' })
})

test(
  'a tap that a process has open is refused with that process, and no hint would remove it',
  async () => {
    const script = 'ip tuntap add gwtest0 mode tap && exec qemu-system-x86_64 "$@"'
    const netdev = 'tap,id=n0,ifname=gwtest0,script=no,downscript=no'
    const words = ['--net', 'sh', '-c', script, 'sh', '-nodefaults', '-display', 'none', '-S', '-machine', 'none', '-netdev', netdev]
    const holder = spawn('unshare', words, { stdio: 'ignore' })
    try {
      await eventually(() => (tapHolder('gwtest0') === holder.pid ? true : undefined), { ms: 20_000, what: 'a QEMU with a tap' })
      const spec = parseSpec('name: x\nmemory: 64MiB\nkernel: k\nnics: [{ type: tap, tap: gwtest0 }]\n')
      const error = (await thrown(() => assertTapsFree(spec))) as Error & { code: string; hint: string }
      assert.is(error.code, 'PREFLIGHT_DEVICE_BUSY')
      assert.match(error.message, new RegExp(`gwtest0 .* process ${holder.pid}$`))
      assert.not.match(error.hint, /\bdel\b/)
    } finally {
      holder.kill('SIGKILL')
    }
    assert.is(tapHolder('gwtest1'), undefined)
  },
  { skip: qemuMissing() ?? tapProblem() },
)

test('a NIC without a tap asks for none', async () => {
  assertTapsFree(parseSpec('name: x\nmemory: 64MiB\nkernel: k\nnics: [{ type: user }]\n'), () => 1)
  const spec = parseSpec('name: x\nmemory: 64MiB\nkernel: k\nnics: [{ type: tap, tap: tap7 }]\n')
  assert.is(await codeOf(() => assertTapsFree(spec, () => 4711)), 'PREFLIGHT_DEVICE_BUSY')
  assertTapsFree(spec, () => undefined)
})

/** Why no tap can be made in a network namespace of our own here, or undefined. */
function tapProblem(): string | undefined {
  try {
    execFileSync('unshare', ['--net', 'ip', 'tuntap', 'add', 'gwtest0', 'mode', 'tap'], { stdio: 'ignore', timeout: 10_000 })
    return undefined
  } catch {
    return 'no tap can be made here (root, iproute2 and /dev/net/tun are needed)'
  }
}

test('a tool ends with the process that started it, even by kill -9; one that is not there is told by its exit code', async () => {
  const { file, args } = cagedTool('sleep', ['60'], MIB)
  const script = `const c = require('child_process').spawn(${JSON.stringify(file)}, ${JSON.stringify(args)}); console.log(c.pid); setInterval(() => {}, 1000)`
  const parent = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
  const pid = await new Promise<number>(resolve => parent.stdout.once('data', text => resolve(Number(String(text)))))
  const isThere = () => existsSync(`/proc/${pid}`) && !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
  await eventually(() => (readFileSync(`/proc/${pid}/cmdline`, 'utf8').startsWith('sleep') ? true : undefined), {
    ms: 10_000,
    what: 'the tool',
  })
  parent.kill('SIGKILL')
  await eventually(() => (isThere() ? undefined : true), { ms: 10_000, what: 'the end of the tool' })
  const missing = cagedTool('godwit-no-such-program', [], MIB)
  const code = await new Promise(resolve => spawn(missing.file, missing.args, { stdio: 'ignore' }).once('close', resolve))
  assert.is(code, NOT_FOUND)
})

test.run()
