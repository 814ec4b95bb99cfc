// The functions of CUDA's libraries that the program is linked with. Where one is missing, the program asks the system's loader for its
// library again (readelf -d names it), and the linker names the function where the library is a stand-in (scripts/cuda-toolkit.sh).
jumps! {
    cudart {
        __cudaGetKernel __cudaLaunchKernel_ptsz __cudaPopCallConfiguration __cudaPushCallConfiguration __cudaRegisterFatBinary
        __cudaRegisterFatBinaryEnd __cudaRegisterFunction __cudaRegisterVar __cudaUnregisterFatBinary cudaDeviceGetAttribute
        cudaFree cudaFreeAsync_ptsz cudaFuncGetAttributes cudaFuncSetAttribute cudaGetDevice cudaGetDeviceCount cudaGetErrorName
        cudaGetErrorString cudaGetLastError cudaMalloc cudaMallocAsync_ptsz cudaMemsetAsync_ptsz
        cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags cudaPeekAtLastError cudaSetDevice cudaStreamSynchronize_ptsz
    }
    cuda {
        cuCtxDestroy_v2 cuCtxGetCurrent cuCtxSetCurrent cuCtxSynchronize cuDeviceGet cuDeviceGetAttribute cuDeviceGetCount
        cuDeviceGetDefaultMemPool cuDeviceGetGraphMemAttribute cuDeviceGetName cuDeviceGraphMemTrim cuDevicePrimaryCtxRelease_v2
        cuDevicePrimaryCtxRetain cuDeviceSetGraphMemAttribute cuDriverGetVersion
        cuEventCreate cuEventDestroy_v2 cuEventElapsedTime_v2 cuEventRecord cuEventSynchronize cuFuncSetAttribute cuGetErrorString
        cuGraphDestroy cuGraphExecDestroy cuGraphInstantiateWithFlags cuGraphLaunch
        cuInit cuLaunchKernel cuMemAllocAsync cuMemAlloc_v2 cuMemFreeAsync cuMemFree_v2 cuMemGetInfo_v2 cuMemPoolGetAttribute
        cuMemPoolSetAttribute cuMemPoolTrimTo cuMemcpyDtoDAsync_v2 cuMemcpyDtoHAsync_v2 cuMemcpyHtoDAsync_v2 cuMemcpyPeerAsync
        cuMemsetD8Async cuModuleGetFunction cuModuleLoad cuModuleLoadData cuModuleUnload cuStreamBeginCapture_v2 cuStreamCreate
        cuStreamDestroy_v2 cuStreamEndCapture cuStreamIsCapturing cuStreamSynchronize cuStreamWaitEvent
    }
    cublaslt {
        cublasLtCreate cublasLtMatmul cublasLtMatmulAlgoGetHeuristic cublasLtMatmulDescCreate cublasLtMatmulDescSetAttribute
        cublasLtMatmulPreferenceCreate cublasLtMatmulPreferenceDestroy cublasLtMatmulPreferenceSetAttribute
        cublasLtMatrixLayoutCreate
    }
    cublas {
        cublasCreate_v2 cublasDestroy_v2 cublasDgemmStridedBatched cublasGemmStridedBatchedEx cublasSetStream_v2
    }
    curand {
        curandCreateGenerator curandDestroyGenerator curandGenerateNormal curandGenerateNormalDouble
        curandSetPseudoRandomGeneratorSeed curandSetStream
    }
}
