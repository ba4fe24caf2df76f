import { existsSync } from 'node:fs'
import { chmod, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { measureAccelerators, type Probe, probeAccelerator } from '../../../edge-node/vm/accelerators.ts'
import { diskFreeBytes, memoryAvailableBytes } from '../../../edge-node/vm/host.ts'
import { chooseAccelerator, findQemu, KVM_MISSES_MAX, qemuAbilities } from '../../../edge-node/vm/qemu.ts'
import { DEFAULT_CPU, DEFAULT_MACHINE } from '../../../edge-node/vm/spec.ts'
import { compareVersions, parseQemuVersion } from '../../../edge-node/vm/version.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { qemuMissing, testSite } from './echo-guest.ts'

const test = suite('edge-node/vm/qemu')
const skip = qemuMissing()

async function script(dir: string, text: string): Promise<string> {
  const path = join(dir, 'qemu')
  await writeFile(path, `#!/bin/sh\n${text}\n`)
  await chmod(path, 0o755)
  return path
}

test('versions are read and compared by number', () => {
  assert.is(parseQemuVersion('QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright'), '10.0.2')
  assert.is(parseQemuVersion('QEMU emulator version 9.1\n'), '9.1.0')
  assert.is(parseQemuVersion('qemu-img version 10.0.2'), undefined)
  assert.ok(compareVersions('10.0.2', '9.2.4') > 0)
  assert.ok(compareVersions('7.2.22', '9.0') < 0)
  assert.is(compareVersions('10.0.2', '10.0.9', 2), 0)
})

test('QEMU missing, too old or not QEMU: each has its code', async () => {
  await using site = await testSite()
  const codeFor = (binary: string) => codeOf(() => findQemu({ binary }))
  assert.is(await codeFor('qemu-system-that-nobody-has'), 'PREFLIGHT_QEMU_MISSING')
  assert.is(await codeFor(await script(site.dir, 'echo "QEMU emulator version 6.2.0 (old)"')), 'PREFLIGHT_QEMU_OLD')
  assert.is(await codeFor(await script(site.dir, 'echo "hello"')), 'QEMU_COMMAND')
  assert.is(await codeFor(await script(site.dir, 'exit 3')), 'QEMU_COMMAND')
  const binary = await script(site.dir, 'echo "QEMU emulator version 7.2.22 (Debian)"')
  assert.equal(await findQemu({ binary }), { binary, version: '7.2.22' })
})

test('an accelerator that no guest runs under does not count', async () => {
  await using site = await testSite()
  assert.is(await probeAccelerator(await script(site.dir, 'exec sleep 60'), 'kvm', 200), undefined)
  assert.is(await probeAccelerator(await script(site.dir, 'exit 1'), 'kvm', 5_000), undefined)
  assert.is(await probeAccelerator('qemu-system-that-nobody-has', 'kvm', 5_000), undefined)
  assert.is(chooseAccelerator('auto', ['tcg', 'kvm']), 'kvm')
  assert.is(chooseAccelerator('auto', ['tcg']), 'tcg')
  assert.is(chooseAccelerator('tcg', ['tcg', 'kvm']), 'tcg')
  assert.is(await codeOf(() => chooseAccelerator('kvm', ['tcg'])), 'PREFLIGHT_ACCELERATOR')
  assert.is(await codeOf(() => chooseAccelerator('auto', [])), 'PREFLIGHT_ACCELERATOR')
})

/** A host on which guests take these times, in order; undefined: never. */
function hostOf(times: { tcg: (number | undefined)[]; kvm: (number | undefined)[] }): { probe: Probe; asked: string[] } {
  const asked: string[] = []
  const probe: Probe = async (_, accelerator, ms) => {
    asked.push(accelerator)
    const took = times[accelerator].shift()
    return took !== undefined && took <= ms ? took : undefined
  }
  return { probe, asked }
}

test('KVM counts when its guest is not much slower than an emulated one, and is asked again before it is ruled out', async () => {
  const measured = async (times: Parameters<typeof hostOf>[0]) => {
    const { probe, asked } = hostOf(times)
    return { accelerators: await measureAccelerators('qemu', probe), asked: asked.length }
  }
  assert.equal(await measured({ tcg: [120], kvm: [150] }), { accelerators: ['kvm', 'tcg'], asked: 2 })
  assert.equal(await measured({ tcg: [120], kvm: [900, 150] }), { accelerators: ['kvm', 'tcg'], asked: 3 }, 'a miss on a busy host')
  assert.equal(await measured({ tcg: [900], kvm: [2500] }), { accelerators: ['kvm', 'tcg'], asked: 2 }, 'all is slow there')
  assert.equal(await measured({ tcg: [90], kvm: [2800, 3600, 5100] }), { accelerators: ['tcg'], asked: 4 }, 'it runs, uselessly')
  assert.equal(await measured({ tcg: [undefined], kvm: [200] }), { accelerators: ['kvm'], asked: 2 })
  assert.equal(await measured({ tcg: [undefined], kvm: [] }), { accelerators: [], asked: 4 })
})

test(
  'a measurement that decides against KVM is repeated at the next starts, not kept until the host reboots',
  async () => {
    await using site = await testSite()
    const cacheFile = join(site.dir, 'abilities.json')
    const qemu = await findQemu()
    let measured = 0
    const ask = async (accelerators: ('kvm' | 'tcg')[]) => {
      const measure = async () => {
        measured++
        return accelerators
      }
      return (await qemuAbilities(qemu, { cacheFile, measure })).accelerators
    }
    assert.equal(await ask(['tcg']), ['tcg'])
    assert.equal(await ask(['tcg', 'tcg']), ['tcg', 'tcg'], 'measured again')
    for (let start = 2; start < KVM_MISSES_MAX; start++) await ask(['tcg'])
    assert.is(measured, KVM_MISSES_MAX)
    assert.equal(await ask(['tcg', 'tcg']), ['tcg'], 'then it is final')
    assert.is(measured, KVM_MISSES_MAX)
  },
  { skip: skip ?? (existsSync('/dev/kvm') ? undefined : 'this host has no /dev/kvm'), ms: 60_000 },
)

test(
  'the abilities of the real QEMU are measured once and then remembered',
  async () => {
    await using site = await testSite()
    const cacheFile = join(site.dir, 'abilities.json')
    const qemu = await findQemu()
    for (let start = 1; start < KVM_MISSES_MAX; start++) await qemuAbilities(qemu, { cacheFile })
    const abilities = await qemuAbilities(qemu, { cacheFile })
    assert.ok(abilities.accelerators.includes('tcg'))
    assert.ok(abilities.machines.includes(DEFAULT_MACHINE))
    assert.ok(abilities.cpus.tcg?.[DEFAULT_CPU])
    const cached = (await readFile(cacheFile, 'utf8')).replaceAll('"pc-i440fx-9.0"', '"from-the-cache"')
    await writeFile(cacheFile, cached)
    assert.ok((await qemuAbilities(qemu, { cacheFile })).machines.includes('from-the-cache'))
    await writeFile(cacheFile, cached.replaceAll(qemu.version, '1.2.3'))
    assert.not((await qemuAbilities(qemu, { cacheFile })).machines.includes('from-the-cache'))
  },
  { skip, ms: 60_000 },
)

test('free memory and disk are measured in bytes', async () => {
  assert.is(memoryAvailableBytes('MemTotal:  100 kB\nMemAvailable:    2048 kB\n'), 2048 * 1024)
  assert.ok(memoryAvailableBytes() > 1024 * 1024)
  assert.ok((await diskFreeBytes('/')) > 0)
})

test.run()
