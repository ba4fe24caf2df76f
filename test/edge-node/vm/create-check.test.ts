import { buildArgv } from '../../../edge-node/vm/argv.ts'
import { assertMachine, type CreateHost, createWarnings } from '../../../edge-node/vm/create-check.ts'
import { parseSpec } from '../../../edge-node/vm/spec.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { MIB } from '../../../wire/units.ts'
import { assert, suite, thrown } from '../../support/suite.ts'

const test = suite('edge-node/vm/create-check')

const GIB = 1024 * MIB
const host: CreateHost = {
  qemuVersion: '10.0.2',
  accelerators: ['kvm', 'tcg'],
  machines: ['pc-i440fx-3.1', 'pc-i440fx-9.0', 'pc-i440fx-10.0', 'pc-q35-9.0'],
  cpus: { kvm: { qemu64: ['svm'], Haswell: [], EPYC: ['sse4a'] }, tcg: { qemu64: [], Haswell: ['pcid'], EPYC: [] } },
  memoryBytes: 8 * GIB,
}
const spec = (more = '', memory = '64MiB') => parseSpec(`name: vm-1\nmemory: ${memory}\nkernel: vmlinuz\n${more}`)

async function refusal(check: () => void): Promise<GodwitError> {
  const error = await thrown(check)
  assert.instance(error, GodwitError)
  return error as GodwitError
}

test('a machine type that the QEMU of the site does not know is refused, with the newest of its kind', async () => {
  assertMachine(spec('machine: pc-i440fx-3.1'), 'tcg', host)
  const error = await refusal(() => assertMachine(spec('machine: pc-i440fx-11.0'), 'kvm', host))
  assert.is(error.code, 'PREFLIGHT_MACHINE')
  assert.match(error.message, 'pc-i440fx-11.0')
  assert.match(error.hint ?? '', 'pc-i440fx-10.0')
})

test('a CPU model that is unknown, or that a host with KVM cannot give whole, is refused; the default one never', async () => {
  const codeAndText = async (cpu: string, accelerator: 'kvm' | 'tcg') => {
    const { code, message } = await refusal(() => assertMachine(spec(`cpu: ${cpu}`), accelerator, host))
    return `${code} ${message}`
  }
  assert.match(await codeAndText('EPYC', 'kvm'), /^PREFLIGHT_CPU .*sse4a/)
  assert.match(await codeAndText('Z80', 'tcg'), /^PREFLIGHT_CPU .*Z80/)
  assertMachine(spec('cpu: Haswell'), 'kvm', host)
  assertMachine(spec(), 'kvm', host)
  assertMachine(spec('cpu: Haswell'), 'tcg', host)
})

test('under KVM a named model is whole or QEMU does not start', () => {
  const cpuOf = (cpu: string, accelerator: 'kvm' | 'tcg') => {
    const argv = buildArgv(spec(`cpu: ${cpu}`), { imagesDir: '/images' }, { accelerator, incoming: false })
    return argv[argv.indexOf('-cpu') + 1]
  }
  assert.equal([cpuOf('Haswell', 'kvm'), cpuOf('Haswell', 'tcg'), cpuOf('qemu64', 'kvm')], ['Haswell,enforce', 'Haswell', 'qemu64'])
})

test('what starts and never moves, or cannot start for now, is a warning with the code that would come', () => {
  const disk = 'disks: [{file: d.img, mode: writable, format: raw}]'
  assert.match(createWarnings(spec(disk), 'tcg', host).join(), /d\.img.*PREFLIGHT_WRITABLE_DISK/)
  assert.match(createWarnings(spec('accelerator: kvm'), undefined, host).join(), /kvm.*PREFLIGHT_ACCELERATOR/)
  assert.match(createWarnings(spec('cpu: Haswell'), 'tcg', host).join(), /Haswell without pcid/)
  assert.match(createWarnings(spec(), 'tcg', { ...host, qemuVersion: '8.2.0' }).join(), /cold.*PREFLIGHT_QEMU_OLD/)
  assert.match(createWarnings(spec('', '8GiB'), 'tcg', host).join(), /8GiB in total.*PREFLIGHT_MEMORY/)
  assert.equal(createWarnings(spec('cpu: Haswell'), 'kvm', { ...host, qemuVersion: '8.2.0' }), [])
})

test.run()
