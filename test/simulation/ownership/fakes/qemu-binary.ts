// edge-node/vm/qemu.ts in the simulation: every host has the same QEMU.
export const QEMU_BINARY = 'qemu'
export const findQemu = async () => ({ binary: 'qemu', version: '10.0.2' })
export const readQemuVersion = async () => '10.0.2'
export const chooseAccelerator = () => 'tcg'
export const workingAccelerator = () => 'tcg'
export const qemuAbilities = async () => ({ accelerators: ['tcg'], machines: ['pc-i440fx-9.0'], cpus: { tcg: { qemu64: [] } } })
