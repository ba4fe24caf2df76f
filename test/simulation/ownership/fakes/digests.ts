// edge-node/disks/digests.ts in the simulation: VMs without disks.
export const createFileDigests = () => ({ close: async (): Promise<void> => {} })
